// Client of a Superdraft server, with a typing session for editors.
export { Superdraft } from "./client.js";
export * from "./errors.js";
export { LiveTypingSession } from "./live_session.js";
export { TypingSession } from "./session.js";
export { DEFAULT_SESSION_OPTIONS } from "./session_options.js";
export { firstWord, nextProbability, probability } from "./suggestions.js";
