// The page: what is typed becomes requests, and answers become drafts in the text and in the list.

import { ApiError, UnreachableError, getLimits, getNgramModels, hasKey, postDrafts, setKey } from "./api.js";
import { compare } from "./comparison.js";
import { DraftSet, firstWord } from "./draft_set.js";
import { Editor } from "./editor.js";
import * as settings from "./settings.js";
import { recall, remember } from "./storage.js";
import { cachedOf, draftParts, formatMs } from "./view.js";
import { Watch } from "./watch.js";

const TYPING_MS = 50; // keys that come together make one request
const ANNOUNCE_MS = 700; // screen readers hear of drafts when typing has paused
const BUSY_MS = 1000; // where an overloaded server does not say when to ask again
const SUPERSEDED = 499;

const byId = (id) => document.getElementById(id);
const sessionId = `playground-${crypto.getRandomValues(new BigUint64Array(2)).join("-")}`;

let draftSet = new DraftSet();
let place = null; // the text before the caret, for which drafts are shown or asked for
let dismissedAt = null;
let numAsked = 0; // an answer counts if no newer request was sent
let numRows = 0;
let maxCharacters = Infinity; // of a prompt; found out when one is too long
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

// What the user does

function onChange() {
  const { before, takesDrafts } = editor;
  if (!takesDrafts || before === "") {
    forget();
    editor.draw();
    return;
  }
  if (before === place) {
    editor.draw(); // the text behind the caret may be new
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
  editor.insert(partOf(draft)); // the text area's event does the rest
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

/** No drafts, and none to come. */
function forget() {
  clearTimeout(askTimer);
  numAsked += 1;
  place = null;
  show(new DraftSet());
}

// Requests

/** Ask for drafts after some time, unless something is typed before that. */
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
    // Something may have been typed that is not asked for yet: what says the same is good for that, too.
    const newer = new DraftSet(askedFor, answer.drafts).typedOn(place);
    if (place !== askedFor && newer.current === null) return;
    show(draftSet.renewed(newer.drafts));
    announceSoon();
  } catch (error) {
    if (mine === numAsked) onError(error, askedFor, ask);
  }
}

const requestOf = (prompt) => ({ prompt: prompt.slice(-maxCharacters), ...settings.fields() });

/** What to do about a request that failed; `again` repeats it after some milliseconds. Throws what is a fault of ours. */
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
    byId("verdict").textContent = "Write something first.";
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
    ask(0); // what was typed meanwhile
  }
}

/** Learn what the server offers. Nothing of it is known before: a server may be started anew with other settings. */
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
  byId("key-message").textContent = error.code === "missing_api_key" ? "This server asks for an API key." : error.message;
  if (!form.hidden) return;
  form.hidden = false;
  byId("key").focus();
}

function onWatch(isUp) {
  byId("banner").textContent = isUp
    ? ""
    : "The server does not answer. Your text stays here, and drafts come again as soon as it does.";
  if (isUp) load();
  else show(new DraftSet(place ?? ""));
}

// What is shown

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

// Wiring

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
