// Options of a typing session.

/** Options of a typing session. */
export interface SessionOptions {
  /** Maximum average number of requests per key press. */
  requestsPerKey: number;
  /** Maximum delay between a key press and its request. 0: requests are sent at once, whatever the budget. */
  maxDelayMs: number;
  /** Number of answers to keep, for texts that occur again. */
  maxAnswers: number;
  /**
   * Maximum length of a prompt; only the end of a longer text is sent. The prompt's beginning moves in steps of a
   * quarter of this limit, so that the server can reuse its work for the previous prompt.
   */
  maxPromptChars: number;
  /** Maximum length of the text after the cursor that is sent. */
  maxSuffixChars: number;
  /** After a draft is accepted, request its continuation at once. */
  prefetch: boolean;
  /**
   * Request suggestions that replace a mistyped word (`Suggestion.replaces`). Only for an editor that can: it shows what
   * will stand there, and deletes what goes. Words that the user has kept, by `dismiss`, or accepted are not corrected.
   */
  corrections: boolean;
  /** Show drafts while they grow. */
  streams: boolean;
  /** Show growing drafts up to the end of their line only, as the option `single_line` cuts finished ones. */
  isSingleLine: boolean;
}

export const DEFAULT_SESSION_OPTIONS: Readonly<SessionOptions> = {
  requestsPerKey: 0.3,
  maxDelayMs: 500,
  maxAnswers: 64,
  maxPromptChars: 4000,
  maxSuffixChars: 1000,
  prefetch: true,
  corrections: false,
  streams: true,
  isSingleLine: false,
};
