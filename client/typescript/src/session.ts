// Typing session: decides which requests an editor sends and which suggestions it shows.
//
// `TypingSession` performs no input or output. It is told about key presses, answers and the passing of time, and
// returns what to do. Its behaviour is therefore reproducible with a manual clock. `LiveTypingSession` carries out its
// decisions. Without `streams`, the decisions are those of the Python client's session.

import { BadRequestError, type ClientError, StatusError } from "./errors.ts";
import type { DraftsAnswer, Snapshot } from "./models.ts";
import { Pace } from "./pace.ts";
import { beginningOf, promptOf } from "./prompt.ts";
import { DEFAULT_SESSION_OPTIONS, type SessionOptions } from "./session_options.ts";
import { AnswerCache, type Display, type Suggestion, display, shownWhileGrowing } from "./suggestions.ts";
import { DisplayLog, type Report, SHOWN_AFTER_MS } from "./telemetry.ts";

const FIRST_HOLD_MS = 500;
const MAX_HOLD_MS = 5_000;

/**
 * Request drafts between `prompt` and `suffix`, then call `answered` or `failed` with this id, and `grown` before if
 * there is news.
 */
export interface Send {
  readonly kind: "send";
  readonly requestId: number;
  readonly prompt: string;
  readonly suffix: string;
  /** The user asked for them, so that improbable ones are welcome, too. */
  readonly isInvoked: boolean;
  /** They may replace the last word. */
  readonly corrects: boolean;
}

/** Abandon this request and close its connection. The session needs no further report about it. */
export interface Cancel {
  readonly kind: "cancel";
  readonly requestId: number;
}

export type Action = Send | Cancel | Report;

interface InFlight {
  readonly requestId: number;
  readonly text: string;
  readonly after: string;
  readonly prompt: string;
  readonly isInvoked: boolean;
  readonly sentMs: number;
  growing: Snapshot | null; // the latest snapshot, if it has drafts
  isTimed: boolean; // the pace knows how long it took
}

/**
 * The typing session of one cursor in one text.
 *
 * Tell the session about everything that happens; each method returns the actions to perform now. Then show `display`,
 * and call `advance` at `wakeAtMs`. Every suggestion in `display` continues the latest text given to the session.
 *
 * While the user types the characters of a draft, the rest of the draft remains visible and nothing is sent. When no
 * draft matches the text any more, a request is sent as soon as the user pauses, see `Pace`. A pending request is kept
 * while the user continues to type, because its drafts may match the new text, until a newer request replaces it. Any
 * other change of the text cancels the request, and so does a snapshot of it if no draft in it agrees with the text.
 */
export class TypingSession {
  /** Why the last request failed; null if it succeeded. */
  error: ClientError | null = null;
  #options: SessionOptions;
  readonly #now: () => number;
  readonly #pace: Pace;
  readonly #cache: AnswerCache;
  readonly #log = new DisplayLog();
  #display = display("");
  #after = "";
  #isChosen = false; // the user selected the ghost text
  #ghostSinceMs = 0;
  #inFlight: InFlight | null = null;
  #numRequests = 0;
  #sendAtMs: number | null = null;
  #changedMs: number;
  #holdUntilMs = -Infinity;
  #numFailures = 0;
  #refusedText: string | null = null;
  #isHidden = false;
  #isClosed = false;

  /** `now` returns monotonic time in milliseconds. */
  constructor(options: Partial<SessionOptions> = {}, now: () => number = () => performance.now()) {
    this.#options = { ...DEFAULT_SESSION_OPTIONS, ...options };
    this.#now = now;
    this.#pace = new Pace(this.#options.requestsPerKey, this.#options.maxDelayMs);
    this.#cache = new AnswerCache(this.#options.maxAnswers);
    this.#changedMs = now();
  }

  /** The text before the cursor. */
  get text(): string {
    return this.#display.text;
  }

  /** The text after the cursor, as far as it is sent. */
  get after(): string {
    return this.#after;
  }

  /** What the editor should show. */
  get display(): Display {
    return this.#display;
  }

  /** Running mean of the time until there is something to show, in milliseconds. */
  get latencyMs(): number {
    return this.#pace.latencyMs;
  }

  /** Whether a request is pending. */
  get isWaiting(): boolean {
    return this.#inFlight !== null;
  }

  /** Whether suggestions were dismissed, and the text has not changed since. */
  get isHidden(): boolean {
    return this.#isHidden;
  }

  /** When to call `advance`, on the session's clock; null if nothing is due before the next input. */
  get wakeAtMs(): number | null {
    const due = [this.#sendAtMs, this.#log.nextMs].filter((atMs) => atMs !== null);
    return due.length > 0 ? Math.min(...due) : null;
  }

  /** Set the text before and after the cursor, after a key press or a cursor movement. */
  edit(text: string, after = ""): Action[] {
    after = beginningOf(after, this.#options.maxSuffixChars);
    if (text === this.text && after === this.#after) return [];
    const nowMs = this.#now();
    const isTyping = text.startsWith(this.text) && after === this.#after;
    this.#after = after;
    if (isTyping) this.#pace.key(nowMs);
    else this.#pace.interrupt();
    const actions = this.#change(text, nowMs);
    if (isTyping) this.#pace.looked(this.#display.ghost !== null);
    return actions;
  }

  /** Request drafts for the text at once, unless there are suggestions. For a user who asks for them. */
  ask(): Action[] {
    const nowMs = this.#now();
    this.#isHidden = this.#isClosed;
    const actions = this.#refresh(nowMs);
    const request = this.#inFlight;
    const isAsked = request !== null && request.isInvoked && request.text === this.text;
    if (this.#display.ghost !== null || isAsked || this.text === "" || this.#isClosed) return actions;
    if (request !== null) actions.push(this.#cancel(request));
    return [...actions, ...this.#send(nowMs, true)];
  }

  /** Accept the whole ghost text, which becomes part of `text`; what it replaces goes. Without one, do nothing. */
  accept(): Action[] {
    return this.#accept((ghost) => ghost.text);
  }

  /** Accept the beginning of the ghost text that `partOf` returns, such as its first word; the rest remains visible. */
  acceptPart(partOf: (text: string) => string): Action[] {
    return this.#accept((ghost) => partOf(ghost.text));
  }

  /** Make the next suggestion (1) or the previous one (-1) the ghost text, wrapping around at the ends. */
  select(step: 1 | -1): Action[] {
    const { text, suggestions, selected } = this.#display;
    if (suggestions.length === 0) return [];
    const nowMs = this.#now();
    this.#isChosen = true;
    this.#ghostSinceMs = nowMs;
    this.#display = display(text, suggestions, (selected + step + suggestions.length) % suggestions.length);
    this.#log.show(this.#display.ghost, nowMs);
    return this.#log.takeReports(nowMs);
  }

  /** Hide all suggestions until the text changes. A ghost text that corrects a word: keep the word instead. */
  dismiss(): Action[] {
    const [nowMs, replaced] = [this.#now(), this.#display.ghost?.replaces ?? ""];
    this.#log.dismiss(nowMs);
    if (replaced === "") this.#isHidden = true;
    else this.#cache.keep(replaced);
    return this.#refresh(nowMs);
  }

  /** Show what `dismiss` has hidden. */
  reveal(): Action[] {
    this.#isHidden = this.#isClosed;
    return this.#refresh(this.#now(), true);
  }

  /** Forget all answers and request new ones: the request's options or the server have changed. */
  restart(options: Partial<SessionOptions> = {}): Action[] {
    const actions: Action[] = this.#inFlight === null ? [] : [{ kind: "cancel", requestId: this.#inFlight.requestId }];
    this.#options = { ...this.#options, ...options };
    this.#inFlight = this.#refusedText = this.error = null;
    this.#numFailures = 0;
    this.#holdUntilMs = -Infinity;
    this.#cache.clear();
    return [...actions, ...this.#refresh(this.#now(), true)];
  }

  /**
   * Process a snapshot of the answer to a `Send`. Those of cancelled requests are ignored. One without drafts is no
   * news: the answer may have some that the server does not show yet.
   */
  grown(requestId: number, snapshot: Snapshot): Action[] {
    const nowMs = this.#now();
    const request = this.#inFlight;
    if (request === null || request.requestId !== requestId) return [];
    if (snapshot.drafts.length === 0) {
      if (request.growing === null) return [];
      request.growing = null;
      this.#cache.drop(request.text, request.after);
      return this.#refresh(nowMs);
    }
    this.#time(request, nowMs);
    request.growing = snapshot;
    const texts = new Set([""]);
    const drafts = snapshot.drafts
      .map((draft) => ({ ...draft, text: shownWhileGrowing(draft.text, this.#options.isSingleLine) }))
      .filter(({ text }) => !texts.has(text) && texts.add(text));
    this.#cache.put(request.text, request.after, snapshot.id, drafts, true);
    return this.#refresh(nowMs);
  }

  /** Process the server's answer to a `Send`. Answers to cancelled requests are ignored. */
  answered(requestId: number, answer: DraftsAnswer): Action[] {
    const nowMs = this.#now();
    const request = this.#inFlight;
    if (request === null || request.requestId !== requestId) return [];
    this.#time(request, nowMs);
    this.#inFlight = this.error = null;
    this.#numFailures = 0;
    this.#cache.put(request.text, request.after, answer.id, answer.drafts);
    return this.#refresh(nowMs);
  }

  /**
   * Process the failure of a `Send`. The next one is delayed: as the server asks, or longer after each failure. A text
   * that the server refused is not sent again; one that is too long for the model is sent without its beginning.
   */
  failed(requestId: number, error: ClientError): Action[] {
    const nowMs = this.#now();
    const request = this.#inFlight;
    if (request === null || request.requestId !== requestId) return [];
    this.#inFlight = null;
    this.#cache.drop(request.text, request.after);
    if (error instanceof StatusError && error.code === "context_length_exceeded" && request.prompt.length > 1) {
      this.#options = { ...this.#options, maxPromptChars: request.prompt.length >> 1 };
      return this.#refresh(nowMs, true);
    }
    this.error = error;
    let holdMs = Math.min(FIRST_HOLD_MS * 2 ** this.#numFailures, MAX_HOLD_MS);
    if (error instanceof StatusError) {
      if (error.retryAfterMs !== null) {
        holdMs = Math.max(error.retryAfterMs, this.#numFailures > 0 ? holdMs : 0); // trusted after the first failure
      }
      if (error instanceof BadRequestError || error.shouldRetry === false) this.#refusedText = request.text;
    }
    this.#holdUntilMs = nowMs + holdMs;
    this.#numFailures += 1;
    return this.#refresh(nowMs);
  }

  /** Perform what is due by now; call this at `wakeAtMs`. */
  advance(): Action[] {
    const nowMs = this.#now();
    const actions: Action[] = this.#log.takeReports(nowMs);
    if (this.#sendAtMs !== null && this.#sendAtMs <= nowMs) actions.push(...this.#send(nowMs));
    return actions;
  }

  /**
   * End the session: hide the suggestions, cancel a pending request, and return the last reports. A closed session
   * still follows the text, but shows and sends nothing.
   */
  close(): Action[] {
    const nowMs = this.#now();
    this.#isHidden = this.#isClosed = true;
    const actions = this.#refresh(nowMs);
    this.#log.close(nowMs);
    return [...actions, ...this.#log.takeReports(nowMs)];
  }

  #change(text: string, nowMs: number, isAtOnce = false): Action[] {
    this.#display = { ...this.#display, text }; // `#show` restores the selection
    this.#isHidden = this.#isClosed;
    this.#changedMs = nowMs;
    return this.#refresh(nowMs, isAtOnce);
  }

  /** Show the suggestions for the text, cancel an obsolete request, and schedule a new one if necessary. */
  #refresh(nowMs: number, isAtOnce = false): Action[] {
    const text = this.text;
    const found = this.#isHidden ? [] : this.#cache.find(text, this.#after);
    this.#show(found ?? [], nowMs);
    const actions: Action[] = [];
    const request = this.#inFlight;
    const isAlong = request !== null && request.after === this.#after && text.startsWith(request.text);
    const isGrowing = !this.#isHidden && isAlong && request.growing !== null && agrees(request, text);
    const needsAnswer = found === null && text !== "" && text !== this.#refusedText && !isGrowing;
    if (request !== null && !isGrowing && !(needsAnswer && request.growing === null && isAlong)) {
      actions.push(this.#cancel(request));
    }
    this.#sendAtMs = null;
    if (needsAnswer) {
      const wantedMs = isAtOnce ? nowMs : this.#changedMs + this.#pace.delayMs;
      this.#sendAtMs = Math.max(wantedMs, this.#holdUntilMs, nowMs);
      if (this.#inFlight?.text === text) this.#sendAtMs = null;
      else if (this.#sendAtMs <= nowMs) actions.push(...this.#send(nowMs));
    }
    return [...actions, ...this.#log.takeReports(nowMs)];
  }

  #cancel({ requestId, text, after, growing }: InFlight): Cancel {
    this.#inFlight = null;
    if (growing !== null) this.#cache.drop(text, after);
    return { kind: "cancel", requestId };
  }

  /** Let the pace learn how long a request took until there was something to show, or nothing for certain. */
  #time(request: InFlight, nowMs: number): void {
    if (!request.isTimed) this.#pace.answered(nowMs - request.sentMs);
    request.isTimed = true;
  }

  #show(suggestions: readonly Suggestion[], nowMs: number): void {
    const before = this.#display.ghost;
    const selected = before === null ? 0 : this.#selectionAfter(before, suggestions, nowMs);
    if (before === null || selected === -1) this.#ghostSinceMs = nowMs;
    if (selected === -1) this.#isChosen = false;
    this.#display = display(this.text, suggestions, Math.max(selected, 0));
    this.#log.show(this.#display.ghost, nowMs);
  }

  /**
   * The index of the draft that was the ghost text; -1 if it is gone. A growing draft is the one that extends its text.
   * If it is no longer the best one, and was on the screen too briefly to be read, the best one takes its place.
   */
  #selectionAfter(before: Suggestion, suggestions: readonly Suggestion[], nowMs: number): number {
    const ofSameAnswer = ({ completionId }: Suggestion): boolean => completionId === before.completionId;
    if (!before.isGrowing) {
      return suggestions.findIndex((draft) => ofSameAnswer(draft) && draft.rank === before.rank);
    }
    if (!this.#isChosen && nowMs - this.#ghostSinceMs < SHOWN_AFTER_MS) return -1;
    return suggestions.findIndex((draft) => ofSameAnswer(draft) && draft.draft.startsWith(before.draft));
  }

  /** Request drafts for the text, unless a pending request is likely to return matching drafts soon. */
  #send(nowMs: number, isInvoked = false): Action[] {
    const actions: Action[] = [];
    const older = this.#inFlight;
    if (older !== null) {
      const [dueMs, lateMs] = [0.5, 2].map((share) => older.sentMs + share * this.#pace.latencyMs) as [number, number];
      if ((dueMs <= nowMs || this.#wouldStarve()) && nowMs < lateMs) {
        this.#sendAtMs = lateMs;
        return [];
      }
      // The server takes at least this long. Without this lesson, a slow one would never get the time to answer.
      if (this.#options.streams) this.#pace.answered(Math.max(nowMs - older.sentMs, this.#pace.latencyMs));
      actions.push(this.#cancel(older));
    }
    this.#numRequests += 1;
    const [requestId, text, suffix] = [this.#numRequests, this.text, this.#after];
    const prompt = promptOf(text, this.#options.maxPromptChars);
    const begun = { sentMs: nowMs, growing: null, isTimed: false };
    this.#inFlight = { requestId, text, after: suffix, prompt, isInvoked, ...begun };
    this.#sendAtMs = null;
    const corrects = this.#options.corrections && this.#cache.mayCorrect(text);
    return [...actions, { kind: "send", requestId, prompt, suffix, isInvoked, corrects }];
  }

  /** Whether requests that newer ones replace at each key would never be answered. */
  #wouldStarve(): boolean {
    return this.#options.streams && this.#pace.typicalPauseMs < this.#pace.latencyMs;
  }

  #accept(partOf: (ghost: Suggestion) => string): Action[] {
    const ghost = this.#display.ghost;
    if (ghost === null) return [];
    const nowMs = this.#now();
    const taken = partOf(ghost);
    this.#log.accept(ghost, nowMs, taken === ghost.text);
    this.#pace.interrupt();
    const { text, after } = this;
    if (ghost.replaces !== "") this.#cache.putCorrected(text, after, ghost.replaces);
    this.#cache.keep(taken);
    const before = text.slice(0, text.length - ghost.replaces.length);
    return this.#change(before + taken, nowMs, this.#options.prefetch);
  }
}

/** Whether a growing draft continues `text`, which begins with the request's, or may still grow to do so. */
function agrees(request: InFlight, text: string): boolean {
  const typed = text.slice(request.text.length);
  const drafts = request.growing?.drafts ?? [];
  return drafts.some((draft) =>
    draft.replaces ? typed === "" : draft.text.startsWith(typed) || typed.startsWith(draft.text),
  );
}
