// Typing session connected to a server.

import type { Superdraft } from "./client.ts";
import { ClientError } from "./errors.ts";
import type { DraftsAnswer, DraftsOptions, Snapshot } from "./models.ts";
import { type Action, type Send, TypingSession } from "./session.ts";
import type { SessionOptions } from "./session_options.ts";
import { type Display, firstWord } from "./suggestions.ts";
import type { Report } from "./telemetry.ts";

/** The methods of a client that a typing session uses. `Superdraft` implements them. */
export type TypingClient = Pick<Superdraft, "complete" | "stream" | "feedback">;

/** Settings of a live session, and of the session within it. */
export interface LiveSessionOptions extends Partial<Omit<SessionOptions, "isSingleLine">> {
  /** Called whenever the display, the text, the error or `isWaiting` may have changed. */
  onChange?: () => void;
  /** Called with each answer, and with each snapshot before it, of requests that were not cancelled. */
  onAnswer?: (answer: DraftsAnswer, prompt: string, elapsedMs: number) => void;
  onSnapshot?: (snapshot: Snapshot, prompt: string, elapsedMs: number) => void;
  /** Whether to tell the server which drafts were shown, accepted and dismissed. Failed reports are dropped. */
  report?: boolean;
  /**
   * Options of each request. The default `session_id` is a random one. The default `trigger` is "automatic": the server
   * withholds drafts that are less probable than `min_probability_shown`, except where the user asks for drafts.
   */
  drafts?: DraftsOptions;
}

/**
 * Sends the requests and reports of a `TypingSession`, and tells the editor of changes.
 *
 *     const typing = new LiveTypingSession(new Superdraft(url), { onChange: redraw });
 *     typing.edit("Thank you f");     // at each key press
 *     typing.display.ghost;           // the suggestion to show now
 *     typing.accept();                // on Tab; typing.text is the new text
 */
export class LiveTypingSession {
  readonly #client: TypingClient;
  readonly #options: LiveSessionOptions;
  readonly #session: TypingSession;
  readonly #requests = new Map<number, AbortController>();
  readonly #reports = new Set<Promise<unknown>>();
  readonly #defaults: DraftsOptions = {
    num_drafts: 3,
    max_tokens: 10,
    trigger: "automatic",
    session_id: `typing-${randomId()}`,
  };
  #drafts: DraftsOptions;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(client: TypingClient, options: LiveSessionOptions = {}) {
    this.#client = client;
    this.#options = options;
    this.#drafts = { ...this.#defaults, ...options.drafts };
    this.#session = new TypingSession({ ...withoutCallbacks(options), isSingleLine: this.#isSingleLine });
  }

  /** The text before the cursor. */
  get text(): string {
    return this.#session.text;
  }

  /** The text after the cursor, as far as it is sent. */
  get after(): string {
    return this.#session.after;
  }

  /** What the editor should show. */
  get display(): Display {
    return this.#session.display;
  }

  /** Why the last request failed; null if it succeeded. */
  get error(): ClientError | null {
    return this.#session.error;
  }

  /** Running mean of the time until there is something to show, in milliseconds. */
  get latencyMs(): number {
    return this.#session.latencyMs;
  }

  /** Whether a request is pending. */
  get isWaiting(): boolean {
    return this.#session.isWaiting;
  }

  /** Whether suggestions were dismissed, and the text has not changed since. */
  get isHidden(): boolean {
    return this.#session.isHidden;
  }

  /** Set the text before the cursor and, if the server should see it, the text after it. */
  edit(text: string, after = ""): void {
    this.#do(this.#session.edit(text, after));
  }

  /** Request drafts at once, for a user who asks for them. */
  ask(): void {
    this.#do(this.#session.ask());
  }

  /** Accept the whole ghost text. */
  accept(): void {
    this.#do(this.#session.accept());
  }

  /** Accept the first word of the ghost text; the rest remains visible. */
  acceptWord(): void {
    this.#do(this.#session.acceptPart(firstWord));
  }

  /** Make the next suggestion the ghost text. */
  selectNext(): void {
    this.#do(this.#session.select(1));
  }

  /** Make the previous suggestion the ghost text. */
  selectPrevious(): void {
    this.#do(this.#session.select(-1));
  }

  /** Hide all suggestions until the text changes. */
  dismiss(): void {
    this.#do(this.#session.dismiss());
  }

  /** Show what `dismiss` has hidden. */
  reveal(): void {
    this.#do(this.#session.reveal());
  }

  /** Forget all answers and request new ones, with these options in place of the present ones if there are any. */
  restart(drafts?: DraftsOptions): void {
    if (drafts !== undefined) this.#drafts = { ...this.#defaults, ...drafts };
    this.#do(this.#session.restart({ isSingleLine: this.#isSingleLine }));
  }

  /** Cancel pending requests, and wait for the last reports to be sent. */
  async close(): Promise<void> {
    this.#do(this.#session.close());
    clearTimeout(this.#timer);
    await Promise.all(this.#reports);
  }

  get #isSingleLine(): boolean {
    return this.#drafts.single_line === true;
  }

  #do(actions: Action[]): void {
    for (const action of actions) {
      if (action.kind === "send") {
        void this.#request(action);
      } else if (action.kind === "cancel") {
        this.#requests.get(action.requestId)?.abort();
        this.#requests.delete(action.requestId);
      } else if (this.#options.report ?? true) {
        const sent = this.#send(action).finally(() => this.#reports.delete(sent));
        this.#reports.add(sent);
      }
    }
    clearTimeout(this.#timer);
    const wakeAtMs = this.#session.wakeAtMs;
    if (wakeAtMs !== null) {
      // Timers round down to whole milliseconds, and `advance` does nothing too early.
      this.#timer = setTimeout(
        () => this.#do(this.#session.advance()),
        Math.max(0, Math.ceil(wakeAtMs - performance.now())),
      );
    }
    this.#options.onChange?.();
  }

  async #request(send: Send): Promise<void> {
    const { requestId, prompt } = send;
    const controller = new AbortController();
    this.#requests.set(requestId, controller);
    const isCurrent = (): boolean => this.#requests.get(requestId) === controller;
    const sentMs = performance.now();
    try {
      const answer = await this.#answer(send, controller.signal);
      if (!isCurrent()) return;
      this.#requests.delete(requestId);
      this.#options.onAnswer?.(answer, prompt, performance.now() - sentMs);
      this.#do(this.#session.answered(requestId, answer));
    } catch (error) {
      if (!isCurrent()) return; // cancelled
      this.#requests.delete(requestId);
      if (!(error instanceof ClientError)) throw error;
      this.#do(this.#session.failed(requestId, error));
    }
  }

  async #answer(send: Send, signal: AbortSignal): Promise<DraftsAnswer> {
    const { requestId, prompt } = send;
    const fields = this.#fieldsOf(send);
    const sentMs = performance.now();
    const request = { signal, maxRetries: 0 }; // the session itself decides when to try again
    if (!(this.#options.streams ?? true)) return this.#client.complete(prompt, fields, request);
    const stream = await this.#client.stream(prompt, fields, request);
    for await (const snapshot of stream) {
      if (signal.aborted) break;
      this.#options.onSnapshot?.(snapshot, prompt, performance.now() - sentMs);
      this.#do(this.#session.grown(requestId, snapshot));
    }
    return stream.result();
  }

  #fieldsOf({ suffix, isInvoked, corrects }: Send): DraftsOptions {
    const corrections = corrects ? ({ corrections: "on" } as const) : {};
    const fields = { ...this.#drafts, ...(suffix !== "" && { suffix }), ...corrections };
    if (!isInvoked) return fields;
    const { min_probability_shown: _, ...others } = fields; // it is for drafts that nobody asked for
    return { ...others, trigger: "invoked" };
  }

  async #send({ completionId, event, rank, elapsedMs }: Report): Promise<void> {
    try {
      await this.#client.feedback(completionId, event, rank, elapsedMs);
    } catch (error) {
      if (!(error instanceof ClientError)) throw error; // others are not worth interrupting the user for
    }
  }
}

function withoutCallbacks({
  onChange,
  onAnswer,
  onSnapshot,
  report,
  drafts,
  ...options
}: LiveSessionOptions): Partial<SessionOptions> {
  return options;
}

/** A random id. `crypto.randomUUID` exists only on pages with a secure origin. */
function randomId(): string {
  return [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(16).padStart(8, "0")).join("");
}
