// Stream of growing drafts: snapshots, then the answer.

import { ConnectionFailedError, InvalidAnswerError, StreamBrokenError, statusError } from "./errors.ts";
import type { DraftsAnswer, Snapshot } from "./models.ts";
import { EventParser } from "./sse.ts";

const DONE = "[DONE]";

/** What a stream needs of the request that it belongs to. */
export interface Connection {
  run<T>(work: () => Promise<T>): Promise<T>;
  end(): void;
}

/** Whether a value has the fields of an answer that the client itself uses. */
export function isDraftsAnswer(value: unknown): value is DraftsAnswer {
  const answer = value as Partial<DraftsAnswer> | null;
  return typeof answer === "object" && answer?.object === "drafts" && isDrafted(answer);
}

function isDrafted(event: { id?: unknown; drafts?: unknown }): boolean {
  return typeof event.id === "string" && Array.isArray(event.drafts) && event.drafts.every(isDraft);
}

function isDraft(draft: unknown): boolean {
  const { index, text, score } = (draft ?? {}) as Record<string, unknown>;
  return typeof index === "number" && typeof text === "string" && typeof score === "number";
}

/** Growing drafts. Iterate over the snapshots, once, and then call `result`; or call `result` at once. */
export class DraftsStream implements AsyncIterable<Snapshot> {
  readonly #response: Response;
  readonly #connection: Connection;
  readonly #baseUrl: string;
  readonly #snapshots: AsyncGenerator<Snapshot, void>;
  #answer: DraftsAnswer | null = null;

  constructor(response: Response, connection: Connection, baseUrl: string) {
    this.#response = response;
    this.#connection = connection;
    this.#baseUrl = baseUrl;
    this.#snapshots = this.#read();
  }

  [Symbol.asyncIterator](): AsyncGenerator<Snapshot, void> {
    return this.#snapshots;
  }

  /** Read the rest of the stream and return the finished drafts. */
  async result(): Promise<DraftsAnswer> {
    for await (const _ of this.#snapshots);
    if (this.#answer === null) throw this.#broken();
    return this.#answer;
  }

  async *#read(): AsyncGenerator<Snapshot, void> {
    const parser = new EventParser();
    try {
      const reader = this.#response.body?.getReader();
      while (true) {
        const part = await this.#connection
          .run(async () => reader?.read())
          .catch((error: unknown) => {
            throw error instanceof ConnectionFailedError ? this.#broken() : error;
          });
        if (part === undefined || part.done) break;
        for (const data of parser.feed(part.value)) {
          const snapshot = data === DONE ? null : this.#take(data);
          if (snapshot !== null) yield snapshot;
        }
      }
      if (this.#answer === null) throw this.#broken();
    } finally {
      this.#connection.end();
    }
  }

  /** Keep an answer, return a snapshot, ignore events of later versions. */
  #take(data: string): Snapshot | null {
    const event = jsonObject(data);
    if ("error" in event) throw statusError(event["error"], this.#response);
    if (event["object"] === "drafts") {
      if (!isDraftsAnswer(event)) throw invalid(data);
      this.#answer = event;
    } else if (event["object"] === "drafts.snapshot") {
      if (!isDrafted(event)) throw invalid(data);
      return event as unknown as Snapshot;
    }
    return null;
  }

  #broken(): StreamBrokenError {
    return new StreamBrokenError(`The connection to ${this.#baseUrl} ended before the drafts were finished.`);
  }
}

function jsonObject(data: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(data);
    if (typeof value === "object" && value !== null) return value as Record<string, unknown>;
  } catch {
    // reported below
  }
  throw invalid(data);
}

function invalid(data: string): InvalidAnswerError {
  return new InvalidAnswerError(
    `An event of the stream (${data.length} characters) is not one of a Superdraft server.`,
  );
}
