// One HTTP exchange: timeouts, aborts, and failures of the network as errors of the client.

import { ClientError, ConnectionFailedError, RequestTimeoutError } from "./errors.ts";

/** One request and its response, with a timeout for each part and with the caller's signal. */
export class Exchange {
  response!: Response;
  readonly #baseUrl: string;
  readonly #timeoutMs: number;
  readonly #signal: AbortSignal | undefined;
  readonly #controller = new AbortController();
  readonly #abort = (): void => this.#controller.abort();

  constructor(baseUrl: string, timeoutMs: number, signal: AbortSignal | undefined) {
    this.#baseUrl = baseUrl;
    this.#timeoutMs = timeoutMs;
    this.#signal = signal;
    if (signal?.aborted) this.#abort();
    signal?.addEventListener("abort", this.#abort);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Wait for `work`, for one part of the exchange, and translate failures of the network. */
  async run<T>(work: () => Promise<T>): Promise<T> {
    let isLate = false;
    const timer = setTimeout(() => {
      isLate = true;
      this.#abort();
    }, this.#timeoutMs);
    try {
      return await work();
    } catch (error) {
      if (error instanceof ClientError) throw error;
      if (this.#signal?.aborted) throw this.#signal.reason;
      if (isLate) throw new RequestTimeoutError(`${this.#baseUrl} did not respond within ${this.#timeoutMs} ms.`);
      throw new ConnectionFailedError(`The connection to ${this.#baseUrl} failed (${String(error)}).`);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Close the connection if the response is not complete. */
  end(): void {
    this.#signal?.removeEventListener("abort", this.#abort);
    this.#abort();
  }
}
