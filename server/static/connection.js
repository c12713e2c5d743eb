// Connection to the page's own server, with the API key that the user has given.

import { Superdraft } from "./client/index.js";
import { recall, remember } from "./storage.js";

const KEY_NAME = "superdraft.api_key";
const STORAGE = "sessionStorage"; // deleted when the tab is closed

/** The server's address. The page may be served under another path, behind a proxy. */
export const baseUrl = new URL(".", location.href).href.replace(/\/$/, "");

let key = recall(STORAGE, KEY_NAME);

export const hasKey = () => key !== "";

export function setKey(newKey) {
  key = newKey;
  remember(STORAGE, KEY_NAME, newKey);
}

/** A client that sends the present key. */
export const connect = () => new Superdraft(baseUrl, { maxRetries: 0, ...(key && { apiKey: key }) });

/** @returns {Promise<boolean>} whether the server accepts requests. */
export async function isReady() {
  try {
    return (await fetch("ready", { signal: AbortSignal.timeout(5000) })).ok;
  } catch {
    return false;
  }
}
