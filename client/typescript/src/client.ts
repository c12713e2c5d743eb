// Client of a server: one method per route. Uses `fetch` and nothing else.

import { InvalidAnswerError, statusError } from "./errors.ts";
import { Exchange } from "./exchange.ts";
import type {
  DraftsAnswer,
  DraftsOptions,
  FeedbackEvent,
  FeedbackReceipt,
  Limits,
  Model,
  NgramModel,
} from "./models.ts";
import { retryDelayMs } from "./retries.ts";
import { DraftsStream, isDraftsAnswer } from "./stream.ts";

/** Settings of a client. */
export interface ClientOptions {
  /** Sent as a bearer token. */
  apiKey?: string;
  /** Milliseconds to wait for the response, and then for each part of it; 30,000 if missing. */
  timeoutMs?: number;
  /** How often a failed request is retried; twice if missing. */
  maxRetries?: number;
  /** Headers of every request, in addition to the client's own. */
  headers?: Readonly<Record<string, string>>;
  /** Used instead of the global `fetch`. */
  fetch?: typeof fetch;
}

/** Settings of one request, which override the client's. */
export interface RequestOptions {
  /** Aborts the request; the server then stops working on it. */
  signal?: AbortSignal;
  timeoutMs?: number;
  maxRetries?: number;
}

const DRAFTS_ROUTE = "/v1/drafts";
const EVENT_STREAM = "text/event-stream";

/** A Superdraft server at `baseUrl`, the address of its playground; a trailing "/v1" is ignored. */
export class Superdraft {
  readonly baseUrl: string;
  #options: Required<Omit<ClientOptions, "apiKey">>;

  constructor(baseUrl: string, options: ClientOptions = {}) {
    this.baseUrl = baseUrl.replace(/\/+$/, "").replace(/\/v1$/, "");
    const { apiKey, timeoutMs = 30_000, maxRetries = 2, headers = {} } = options;
    if (!(timeoutMs > 0)) throw new RangeError(`timeoutMs must be above 0, got ${timeoutMs}`);
    this.#options = {
      timeoutMs,
      maxRetries,
      headers: apiKey === undefined ? headers : { ...headers, authorization: `Bearer ${apiKey}` },
      fetch: options.fetch ?? ((...request) => fetch(...request)),
    };
  }

  /** The best drafts that continue `prompt`, or fewer if there are not enough distinct ones. */
  async complete(
    prompt: string | readonly number[],
    options: DraftsOptions = {},
    request: RequestOptions = {},
  ): Promise<DraftsAnswer> {
    const answer = await this.#json("POST", DRAFTS_ROUTE, { prompt, ...options }, request);
    if (!isDraftsAnswer(answer)) throw this.#invalid(DRAFTS_ROUTE);
    return answer;
  }

  /** The drafts of `complete` while they grow. Leaving the loop over the stream early cancels the request. */
  async stream(
    prompt: string | readonly number[],
    options: DraftsOptions = {},
    request: RequestOptions = {},
  ): Promise<DraftsStream> {
    const exchange = await this.#open("POST", DRAFTS_ROUTE, { prompt, ...options, stream: true }, request);
    if (!exchange.response.headers.get("content-type")?.startsWith(EVENT_STREAM)) {
      exchange.end();
      throw this.#invalid(DRAFTS_ROUTE);
    }
    return new DraftsStream(exchange.response, exchange, this.baseUrl);
  }

  /** The values that the option `model` accepts. */
  async models(request: RequestOptions = {}): Promise<Model[]> {
    return (await this.#list("/v1/models", request)) as Model[];
  }

  /** The n-gram models on the server. */
  async ngramModels(request: RequestOptions = {}): Promise<NgramModel[]> {
    return (await this.#list("/v1/ngram_models", request)) as NgramModel[];
  }

  /** What requests may ask for. */
  async limits(request: RequestOptions = {}): Promise<Limits> {
    const answer = await this.#json("GET", "/v1/limits", null, request);
    if (answer["object"] !== "limits") throw this.#invalid("/v1/limits");
    return answer as unknown as Limits;
  }

  /**
   * Report what the user did with a draft, `elapsedMs` after it was shown. Report `shown` for a draft that was on the
   * screen long enough to be read. The server counts each event once.
   */
  async feedback(
    completionId: string,
    event: FeedbackEvent,
    rank = 0,
    elapsedMs?: number,
    request: RequestOptions = {},
  ): Promise<FeedbackReceipt> {
    const body = {
      completion_id: completionId,
      event,
      index: rank,
      ...(elapsedMs !== undefined && { elapsed_ms: elapsedMs }),
    };
    const answer = await this.#json("POST", "/v1/feedback", body, request);
    if (typeof answer["counted"] !== "boolean") throw this.#invalid("/v1/feedback");
    return answer as unknown as FeedbackReceipt;
  }

  async #list(path: string, request: RequestOptions): Promise<unknown[]> {
    const { data } = await this.#json("GET", path, null, request);
    if (!Array.isArray(data)) throw this.#invalid(path);
    return data as unknown[];
  }

  async #json(
    method: string,
    path: string,
    body: object | null,
    request: RequestOptions,
  ): Promise<Record<string, unknown>> {
    const exchange = await this.#open(method, path, body, request);
    const answer = await exchange.run(async () => parsed(await exchange.response.text())).finally(() => exchange.end());
    if (answer === null) throw this.#invalid(path);
    return answer;
  }

  /** Send a request, with retries, and return the successful response, its body unread. */
  async #open(method: string, path: string, body: object | null, request: RequestOptions): Promise<Exchange> {
    const maxRetries = request.maxRetries ?? this.#options.maxRetries;
    for (let numRetries = 0; ; numRetries += 1) {
      const exchange = new Exchange(this.baseUrl, request.timeoutMs ?? this.#options.timeoutMs, request.signal);
      try {
        await exchange.run(async () => {
          exchange.response = await this.#options.fetch(this.baseUrl + path, {
            method,
            headers: { ...this.#options.headers, ...(body !== null && { "content-type": "application/json" }) },
            body: body === null ? null : JSON.stringify(body),
            signal: exchange.signal,
            redirect: "error", // it would send the text and the key to another place
          });
          if (exchange.response.ok) return;
          throw statusError(parsed(await exchange.response.text())?.["error"], exchange.response);
        });
        return exchange;
      } catch (error) {
        exchange.end();
        const delayMs = retryDelayMs(error, numRetries, maxRetries);
        if (delayMs === null) throw error;
        await pause(delayMs, request.signal);
      }
    }
  }

  #invalid(path: string): InvalidAnswerError {
    return new InvalidAnswerError(`The response of ${this.baseUrl} is not what a Superdraft server sends for ${path}.`);
  }
}

function parsed(text: string): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : null;
  } catch {
    return null;
  }
}

function pause(delayMs: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const timer = setTimeout(resolve, delayMs);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason as Error);
    });
  });
}
