// Client for the server's API: paths relative to the page, the API key, errors as exceptions.

import { recall, remember } from "./storage.js";

const KEY_NAME = "superdraft.api_key";
const STORAGE = "sessionStorage"; // deleted when the tab is closed

/** An error response. `retryMs`: milliseconds to wait before trying again, or null if the server does not say. */
export class ApiError extends Error {
  constructor(status, detail, retryMs) {
    super(detail.message);
    this.status = status;
    this.code = detail.code;
    this.retryMs = retryMs;
  }
}

/** The server did not respond, or not with JSON. */
export class UnreachableError extends Error {}

let key = recall(STORAGE, KEY_NAME);

export const hasKey = () => key !== "";

export function setKey(newKey) {
  key = newKey;
  remember(STORAGE, KEY_NAME, newKey);
}

export const getLimits = () => request("v1/limits");
export const getNgramModels = () => request("v1/ngram_models");
export const postDrafts = (body) => request("v1/drafts", body);

/** @returns {Promise<boolean>} whether the server accepts requests. */
export async function isReady() {
  try {
    return (await fetch("ready", { signal: AbortSignal.timeout(5000) })).ok;
  } catch {
    return false;
  }
}

async function request(path, body) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  let response, answer;
  try {
    response = await fetch(path, options);
    answer = await response.json();
  } catch (error) {
    throw new UnreachableError(error.message);
  }
  if (response.ok) return answer;
  const after = response.headers.get("retry-after-ms");
  const detail = answer.error ?? { message: `The server responded with status ${response.status}.`, code: null };
  throw new ApiError(response.status, detail, after === null ? null : Number(after));
}
