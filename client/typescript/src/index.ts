// Client of a Superdraft server, with a typing session for editors.

export { type ClientOptions, type RequestOptions, Superdraft } from "./client.ts";
export * from "./errors.ts";
export { LiveTypingSession, type LiveSessionOptions, type TypingClient } from "./live_session.ts";
export type * from "./models.ts";
export { type Action, type Cancel, type Send, TypingSession } from "./session.ts";
export { DEFAULT_SESSION_OPTIONS, type SessionOptions } from "./session_options.ts";
export type { DraftsStream } from "./stream.ts";
export { type Display, firstWord, nextProbability, probability, type Suggestion } from "./suggestions.ts";
export type { Report } from "./telemetry.ts";
