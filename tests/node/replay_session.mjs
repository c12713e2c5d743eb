// Replays events in a typing session, on a manual clock, and prints what the session did after each of them.
// Standard input has {"options", "events"}; the Python test compares the output with the Python client's session.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [client] = process.argv.slice(2);
const { BadRequestError, ConnectionFailedError, TypingSession, firstWord } = await import(pathToFileURL(client));
const { options, events } = JSON.parse(readFileSync(0, "utf-8"));

let nowMs = 0;
const session = new TypingSession({ ...options, streams: false }, () => nowMs);
const noDetails = {
  status: 400,
  kind: null,
  param: null,
  code: null,
  requestId: null,
  shouldRetry: null,
  retryAfterMs: null,
};

const handlers = {
  edit: (text, after) => session.edit(text, after),
  ask: () => session.ask(),
  accept: () => session.accept(),
  accept_word: () => session.acceptPart(firstWord),
  select_next: () => session.select(1),
  select_previous: () => session.select(-1),
  dismiss: () => session.dismiss(),
  answered: (requestId, answer) => session.answered(requestId, answer),
  refused: (requestId) => session.failed(requestId, new BadRequestError("refused", noDetails)),
  too_long: (requestId) =>
    session.failed(requestId, new BadRequestError("too long", { ...noDetails, code: "context_length_exceeded" })),
  broken: (requestId) => session.failed(requestId, new ConnectionFailedError("broken")),
  advance: () => session.advance(),
  close: () => session.close(),
};

function described(action) {
  if (action.kind === "send") {
    return ["send", action.requestId, action.prompt, action.suffix, action.isInvoked, action.corrects];
  }
  if (action.kind === "cancel") return ["cancel", action.requestId];
  return ["report", action.completionId, action.event, action.rank, action.elapsedMs ?? null];
}

const steps = events.map(({ at_ms, name, args }) => {
  nowMs = at_ms ?? session.wakeAtMs ?? nowMs;
  const actions = handlers[name](...args).map(described);
  const { text, suggestions, selected } = session.display;
  const shown = suggestions.map(({ completionId, rank, text: rest, replaces }) => [completionId, rank, rest, replaces]);
  const { after, isWaiting: waits, wakeAtMs: wake_ms } = session;
  return { actions, text, after, shown, selected, waits, wake_ms };
});
console.log(JSON.stringify(steps));
