// Playground page: sends requests as the user types, and shows the drafts in the text and in the list.

import { ApiError, UnreachableError, getLimits, getNgramModels, hasKey, postDrafts, setKey } from "./api.js";
import { compare } from "./comparison.js";
import { DraftSet, firstWord } from "./draft_set.js";
import { Editor } from "./editor.js";
import * as settings from "./settings.js";
import { recall, remember } from "./storage.js";
import { cachedOf, draftParts, formatMs } from "./view.js";
import { Watch } from "./watch.js";

const TYPING_MS = 50; // keys in quick succession cause a single request
const ANNOUNCE_MS = 700; // drafts are announced to screen readers after this pause in typing
const BUSY_MS = 1000; // retry delay if an overloaded server does not give one
const SUPERSEDED = 499;

const byId = (id) => document.getElementById(id);
const sessionId = `playground-${crypto.getRandomValues(new BigUint64Array(2)).join("-")}`;

let draftSet = new DraftSet();
let place = null; // the text before the caret, for which drafts are shown or requested
let dismissedAt = null;
let numAsked = 0; // identifies the latest request; answers to older ones are ignored
let numRows = 0;
let maxCharacters = Infinity; // limit of a prompt's length, lowered whenever the server rejects one as too long
let maxBranches = 1;
let isComparing = false;
let askTimer, announceTimer;

const commands = {
  accept: () => type((draft) => draft.text),
  acceptWord: () => type((draft) => firstWord(draft.text)),
  next: () => turn(1),
  previous: () => turn(-1),
  dismiss,
};
const editor = new Editor(byId("text"), byId("mirror"), { change: onChange, command: (name) => commands[name]() });
const watch = new Watch(onWatch);

// User actions

function onChange() {
  const { before, takesDrafts } = editor;
  if (!takesDrafts || before === "") {
    forget();
    editor.draw();
    return;
  }
  if (before === place) {
    editor.draw(); // the text after the caret may have changed
    return;
  }
  place = before;
  dismissedAt = null;
  show(draftSet.typedOn(before));
  ask(TYPING_MS);
}

function type(partOf) {
  const draft = draftSet.current;
  if (draft === null) return false;
  editor.insert(partOf(draft)); // the input event of the text area triggers the rest
  announce("Accepted.");
  return true;
}

function turn(by) {
  if (draftSet.current === null) {
    if (place !== null && place === dismissedAt) ask(0);
    dismissedAt = null;
    return place !== null;
  }
  show(draftSet.turned(by));
  announce(`Draft ${draftSet.shown + 1} of ${draftSet.drafts.length}: ${draftSet.current.text}`);
  return true;
}

function dismiss() {
  if (draftSet.current === null) return false;
  const at = place;
  forget();
  place = dismissedAt = at;
  announce("Dismissed.");
  return true;
}

/** Remove the drafts, and ignore the pending request. */
function forget() {
  clearTimeout(askTimer);
  numAsked += 1;
  place = null;
  show(new DraftSet());
}

// Requests

/** Request drafts after a delay, which starts again if the user types in the meantime. */
function ask(afterMs) {
  clearTimeout(askTimer);
  askTimer = setTimeout(askNow, afterMs);
}

async function askNow() {
  if (place === null || place === dismissedAt || !watch.isUp || isComparing) return;
  const mine = ++numAsked;
  const askedFor = place;
  const startMs = performance.now();
  try {
    const answer = await postDrafts({ ...requestOf(askedFor), session_id: sessionId });
    countRows(answer);
    if (mine !== numAsked) return;
    problem("");
    showFigures(answer, performance.now() - startMs);
    // The user may have typed more since the request was sent. Drafts that match the new text are still valid.
    const newer = new DraftSet(askedFor, answer.drafts).typedOn(place);
    if (place !== askedFor && newer.current === null) return;
    show(draftSet.renewed(newer.drafts));
    announceSoon();
  } catch (error) {
    if (mine === numAsked) onError(error, askedFor, ask);
  }
}

const requestOf = (prompt) => ({ prompt: prompt.slice(-maxCharacters), ...settings.fields() });

/** Handle a failed request; `again` repeats it after some milliseconds. Errors in this script itself are rethrown. */
function onError(error, prompt, again) {
  if (error instanceof UnreachableError) {
    watch.lost();
  } else if (!(error instanceof ApiError)) {
    throw error;
  } else if (error.status === 401 || error.status === 403) {
    askForKey(error);
  } else if (error.status === 503) {
    watch.lost();
  } else if (error.status === 429) {
    problem(error.message);
    again(error.retryMs ?? BUSY_MS);
  } else if (error.code === "context_length_exceeded" && Math.min(prompt.length, maxCharacters) > 1) {
    maxCharacters = Math.floor(Math.min(prompt.length, maxCharacters) / 2);
    again(0);
  } else if (error.status !== SUPERSEDED) {
    problem(error.message);
  }
}

async function compareNow() {
  const prompt = editor.before;
  if (prompt === "") {
    byId("verdict").textContent = "Type some text first.";
    return;
  }
  isComparing = true;
  byId("compare").disabled = true;
  byId("verdict").textContent = "Running…";
  try {
    await compare(requestOf(prompt), maxBranches);
  } catch (error) {
    byId("verdict").textContent = error.message;
    onError(error, prompt, ask);
  } finally {
    isComparing = false;
    byId("compare").disabled = false;
    ask(0); // for text typed in the meantime
  }
}

/** Fetch the server's limits and models. Called again after a restart, when the server's settings may have changed. */
async function load() {
  try {
    const [limits, models] = await Promise.all([getLimits(), getNgramModels()]);
    byId("key-form").hidden = true;
    byId("forget-key").hidden = !hasKey();
    byId("model").textContent = limits.model;
    maxBranches = limits.max_branches;
    maxCharacters = Infinity;
    settings.offer(limits, models);
    ask(0);
  } catch (error) {
    onError(error, "", (afterMs) => setTimeout(load, afterMs));
  }
}

function askForKey(error) {
  const form = byId("key-form");
  byId("key-message").textContent = error.code === "missing_api_key" ? "This server requires an API key." : error.message;
  if (!form.hidden) return;
  form.hidden = false;
  byId("key").focus();
}

function onWatch(isUp) {
  byId("banner").textContent = isUp
    ? ""
    : "The server is not responding. Your text is kept, and drafts will resume when the server is back.";
  if (isUp) load();
  else show(new DraftSet(place ?? ""));
}

// Display

function show(newer) {
  draftSet = newer;
  editor.showGhost(draftSet.current?.text ?? "");
  for (const id of ["accept", "accept-word", "dismiss"]) byId(id).disabled = draftSet.current === null;
  for (const id of ["previous", "next"]) byId(id).disabled = draftSet.drafts.length < 2;
  byId("drafts").replaceChildren(...draftSet.drafts.map(itemOf));
  byId("no-drafts").hidden = draftSet.current !== null;
}

function itemOf(draft, index) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-current", String(index === draftSet.shown));
  button.append(...draftParts(draftSet.prompt, draft));
  button.addEventListener("click", () => type(() => draft.text));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function countRows(answer) {
  numRows += answer.usage.forward_rows;
  byId("all-rows").textContent = numRows;
}

function showFigures({ usage, timings, drafts, warnings }, ms) {
  byId("latency").textContent = formatMs(ms);
  byId("server-time").textContent = formatMs(timings.total_ms);
  byId("cached").textContent = cachedOf(usage);
  byId("rows").textContent = `${usage.forward_rows} for ${numbered(drafts.length)}`;
  byId("warnings").replaceChildren(
    ...warnings.map((warning) => Object.assign(document.createElement("li"), { textContent: warning })),
  );
}

const numbered = (count) => `${count} draft${count === 1 ? "" : "s"}`;

function problem(message) {
  byId("problem").textContent = message;
}

function announce(message) {
  clearTimeout(announceTimer);
  byId("announcement").textContent = message;
}

function announceSoon() {
  clearTimeout(announceTimer);
  announceTimer = setTimeout(() => {
    const { drafts, current } = draftSet;
    if (current !== null) announce(`${numbered(drafts.length)}. ${current.text}`);
  }, ANNOUNCE_MS);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").value = theme;
}

// Event handlers

const buttons = { accept: "accept", "accept-word": "acceptWord", previous: "previous", next: "next", dismiss: "dismiss" };
for (const [id, name] of Object.entries(buttons)) {
  byId(id).addEventListener("click", () => {
    commands[name]();
    if (!id.match(/next|previous/)) byId("text").focus();
  });
}
settings.onChange(() => ask(0));
byId("compare").addEventListener("click", compareNow);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value.trim());
  byId("key").value = "";
  byId("text").focus();
  load();
});
byId("forget-key").addEventListener("click", () => {
  setKey("");
  forget();
  load();
});
byId("theme").addEventListener("change", (event) => {
  setTheme(event.target.value);
  remember("localStorage", "superdraft.theme", event.target.value);
});
setTheme(recall("localStorage", "superdraft.theme"));
load();
