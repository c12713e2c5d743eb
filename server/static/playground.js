// Playground page: tells a typing session what the user does, and shows its drafts in the text and in the list.

import {
  AuthenticationError,
  ClientError,
  ConnectionFailedError,
  LiveTypingSession,
  OverloadedError,
  SupersededError,
  firstWord,
} from "./client/index.js";
import { compare } from "./comparison.js";
import { baseUrl, connect, hasKey, setKey } from "./connection.js";
import { Editor } from "./editor.js";
import { EXAMPLES } from "./examples.js";
import { showAnswer, showFirst } from "./figures.js";
import * as settings from "./settings.js";
import * as silence from "./silence.js";
import { asCurl, asPython, copy } from "./snippets.js";
import { recall, remember } from "./storage.js";
import { TreeView } from "./tree_view.js";
import { draftParts, element, formatPercent, numbered } from "./view.js";
import { Watch } from "./watch.js";

const ANNOUNCE_MS = 700; // drafts are announced to screen readers after this pause in typing
const BUSY_MS = 1000; // retry delay if an overloaded server does not give one
const THEME = "superdraft.theme";
// The person who types here has the server to themselves: requests go out at once, whatever they cost.
const PACE = { requestsPerKey: 1, maxDelayMs: 0 };

const byId = (id) => document.getElementById(id);

let client = connect();
let typing = newSession();
let maxBranches = 1;
let seesSuffix = false; // whether the model does
let askedAt = null; // the place for which the user asked for drafts
let isComparing = false;
let reported = null; // the error that is on display
let announceTimer, retryTimer;

const commands = {
  accept: () =>
    take(
      (text) => text,
      () => typing.accept(),
    ),
  acceptWord: () => take(firstWord, () => typing.acceptWord()),
  next: () => turn(() => typing.selectNext()),
  previous: () => turn(() => typing.selectPrevious()),
  dismiss,
  ask,
};
const editor = new Editor(byId("text"), byId("mirror"), { change: onEdit, command: (name) => commands[name]() });
const watch = new Watch(onWatch);
const tree = new TreeView();

function newSession() {
  return new LiveTypingSession(client, {
    ...PACE,
    corrections: true,
    onChange: () => queueMicrotask(show), // the session may not be assigned yet
    onSnapshot,
    onAnswer,
    drafts: fields(),
  });
}

/** The request fields that the user has set. */
function fields() {
  return { ...settings.fields(), ...silence.fields() };
}

/** Forget all drafts and request new ones: the fields or the server have changed. */
function restart() {
  askedAt = null;
  typing.restart(fields());
}

// User actions

function onEdit() {
  const { takesDrafts, before, after } = editor;
  if (!isComparing) typing.edit(takesDrafts ? before : "", takesDrafts ? after : "");
  show(); // the text after the caret may have changed
}

function take(partOf, accept) {
  const { ghost } = typing.display;
  if (ghost === null || !watch.isUp) return false;
  accept();
  editor.insert(partOf(ghost.text), ghost.replaces.length);
  announce("Accepted.");
  return true;
}

function turn(select) {
  if (typing.isHidden) {
    typing.reveal();
    return true;
  }
  if (typing.display.ghost === null) return false;
  select();
  const { suggestions, selected, ghost } = typing.display;
  announce(`Draft ${selected + 1} of ${suggestions.length}: ${spoken(ghost)}`);
  return true;
}

function dismiss() {
  if (typing.display.ghost === null) return false;
  const { replaces } = typing.display.ghost;
  typing.dismiss();
  announce(replaces ? `${replaces.trim()} stays.` : "Dismissed.");
  return true;
}

/** Request drafts where none are shown, or bring back the dismissed ones. */
function ask() {
  if (!watch.isUp || typing.text === "" || typing.display.ghost !== null) return false;
  if (typing.isHidden) {
    typing.reveal();
  } else {
    askedAt = place();
    typing.ask();
  }
  return true;
}

/** A draft as a screen reader should read it. */
const spoken = ({ text, replaces }) => (replaces ? `Instead of ${replaces.trim()}: ${text}` : text);

/** Identifies the caret's place in the text. */
const place = () => `${editor.before.length} ${editor.area.value}`;

/** Accept a draft of the list. */
function choose(index) {
  if (index >= typing.display.suggestions.length) return;
  while (typing.display.selected !== index) typing.selectNext();
  commands.accept();
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
    await compare(client, prompt, settings.fields(), maxBranches);
  } catch (error) {
    if (!(error instanceof ClientError)) throw error;
    byId("verdict").textContent = error.message;
    onError(error);
  } finally {
    isComparing = false;
    byId("compare").disabled = false;
    onEdit(); // for text typed in the meantime
  }
}

async function copyAs(render, name) {
  const { before: prompt, after: suffix } = editor;
  const body = { prompt, ...(suffix !== "" && { suffix }), trigger: "automatic", ...fields() };
  const isCopied = await copy(render(baseUrl, body, hasKey()));
  announce(isCopied ? `Copied as ${name}.` : "The browser does not allow pages to copy.");
  const button = byId(`copy-${name.toLowerCase()}`);
  button.textContent = isCopied ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = `Copy as ${name}`), 1500);
}

// The server

/** Fetch the server's limits and models. Called again after a restart, when the server's settings may have changed. */
async function load() {
  try {
    const [limits, models] = await Promise.all([client.limits(), client.ngramModels()]);
    byId("key-form").hidden = true;
    byId("forget-key").hidden = !hasKey();
    byId("model").textContent = limits.model;
    maxBranches = limits.max_branches;
    seesSuffix = limits.sees_suffix;
    settings.offer(limits, models);
    silence.offer(limits.min_probability_shown);
    restart();
  } catch (error) {
    if (!(error instanceof ClientError)) throw error;
    onError(error, load);
  }
}

/** Show a failure, and repeat the request later if the server was only busy. */
function onError(error, again = restart) {
  if (error instanceof ConnectionFailedError || error.status === 503) {
    watch.lost();
  } else if (error instanceof AuthenticationError) {
    askForKey(error);
  } else if (!(error instanceof SupersededError)) {
    problem(error.message);
    clearTimeout(retryTimer);
    if (error instanceof OverloadedError) retryTimer = setTimeout(again, error.retryAfterMs ?? BUSY_MS);
  }
}

function onSnapshot(snapshot, prompt, ms) {
  if (tree.add(prompt, snapshot)) showFirst(ms);
}

function onAnswer(answer, prompt, ms) {
  tree.add(prompt, answer);
  showAnswer(answer, ms);
  clearTimeout(announceTimer);
  announceTimer = setTimeout(() => {
    const { suggestions, ghost } = typing.display;
    if (ghost !== null) announce(`${numbered(suggestions.length, "draft")}. ${spoken(ghost)}`);
  }, ANNOUNCE_MS);
}

function askForKey(error) {
  const form = byId("key-form");
  byId("key-message").textContent =
    error.code === "missing_api_key" ? "This server requires an API key." : error.message;
  if (!form.hidden) return;
  form.hidden = false;
  byId("key").focus();
}

/** Start again with the present key. */
function reconnect() {
  void typing.close();
  client = connect();
  typing = newSession();
  onEdit();
  load();
}

function onWatch(isUp) {
  byId("banner").textContent = isUp
    ? ""
    : "The server is not responding. Your text is kept, and drafts will resume when the server is back.";
  if (isUp) load();
  show();
}

// Display

function show() {
  const { text, suggestions, selected, ghost } = watch.isUp
    ? typing.display
    : { text: "", suggestions: [], ghost: null };
  const shown = editor.before === text ? ghost : null;
  editor.showGhost(shown?.text ?? "", shown?.replaces);
  for (const id of ["accept", "accept-word", "dismiss"]) byId(id).disabled = ghost === null;
  for (const id of ["previous", "next"]) byId(id).disabled = suggestions.length < 2;
  showList(text, suggestions, selected);
  byId("work").classList.toggle("busy", typing.isWaiting && watch.isUp);
  if (typing.error !== reported) {
    reported = typing.error;
    problem("");
    if (reported !== null) onError(reported);
  }
}

function showList(text, suggestions, selected) {
  const list = byId("drafts");
  while (list.children.length > suggestions.length) list.lastElementChild.remove();
  suggestions.forEach((suggestion, index) => {
    const item = list.children[index] ?? list.appendChild(newItem(index));
    item.firstElementChild.setAttribute("aria-current", String(index === selected));
    const { text: words, probability, replaces } = suggestion;
    item.firstElementChild.replaceChildren(...draftParts(text, words, probability, replaces));
  });
  byId("none").hidden = suggestions.length > 0;
  byId("no-drafts").textContent = whyNone(text);
  byId("ask").hidden = text === "" || typing.isWaiting || typing.error !== null || isAsked();
  showLegend();
}

/** Whether the drafts are those that the user asked for, so that none were withheld. */
const isAsked = () => askedAt !== null && askedAt === place();

/** Why there are no drafts for `text`. */
function whyNone(text) {
  if (text === "" || typing.isWaiting || typing.error !== null) return "Drafts appear as you type.";
  if (typing.isHidden) return "The drafts are dismissed.";
  if (editor.isInsideLine) {
    return seesSuffix || isAsked()
      ? "No draft fits inside this line."
      : "This model does not see the text after the cursor, so nothing is suggested inside a line.";
  }
  if (isAsked() || silence.minProbability() === 0) return "There is no draft here.";
  return `No draft is as probable as ${formatPercent(silence.minProbability())} here.`;
}

function newItem(index) {
  const button = element("button", "", "");
  button.type = "button";
  button.addEventListener("click", () => choose(index));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function problem(message) {
  byId("problem").textContent = message;
}

function announce(message) {
  clearTimeout(announceTimer);
  byId("announcement").textContent = message;
}

function whatIsHidden() {
  const least = silence.minProbability();
  if (isAsked()) return "You asked for drafts, so none are hidden.";
  if (least === 0) return "";
  const limit = formatPercent(least);
  return `Drafts whose first word is less probable than ${limit} are hidden: the server does not send them.`;
}

function showLegend() {
  byId("legend").textContent =
    "The bar shows how probable the draft's next word is. If a more probable draft has the same word, it is the " +
    `probability up to the first word that differs. ${whatIsHidden()}`;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").value = theme;
}

// Event handlers

const buttons = {
  accept: "accept",
  "accept-word": "acceptWord",
  previous: "previous",
  next: "next",
  dismiss: "dismiss",
};
for (const [id, name] of Object.entries(buttons)) {
  byId(id).addEventListener("click", () => {
    commands[name]();
    byId("text").focus();
  });
}
for (const [name, text] of EXAMPLES) {
  const button = element("button", "", name);
  button.type = "button";
  button.addEventListener("click", () => editor.replaceAll(text));
  byId("examples").append(button);
}
settings.onChange(restart);
silence.onSilence(restart);
byId("ask").addEventListener("click", () => {
  ask();
  byId("text").focus();
});
byId("compare").addEventListener("click", compareNow);
byId("copy-curl").addEventListener("click", () => copyAs(asCurl, "curl"));
byId("copy-python").addEventListener("click", () => copyAs(asPython, "Python"));
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value.trim());
  byId("key").value = "";
  byId("text").focus();
  reconnect();
});
byId("forget-key").addEventListener("click", () => {
  setKey("");
  reconnect();
});
byId("theme").addEventListener("change", (event) => {
  setTheme(event.target.value);
  remember("localStorage", THEME, event.target.value);
});
setTheme(recall("localStorage", THEME));
show();
load();
