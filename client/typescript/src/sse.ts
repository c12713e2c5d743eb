// Incremental parser for server-sent events (HTML standard, 9.2.6 "Interpreting an event stream").

import { InvalidAnswerError } from "./errors.ts";

const MAX_EVENT_CHARS = 1 << 24;

/** Turns chunks of bytes, split anywhere, into the data of each complete event. Names and ids are ignored. */
export class EventParser {
  #decoder = new TextDecoder("utf-8", { fatal: true }); // removes a byte order mark
  #rest = "";
  #data: string[] = [];
  #numChars = 0;

  /** Return the data of each event that `chunk` completes; several data lines are joined by line feeds. */
  feed(chunk: Uint8Array): string[] {
    const text = this.#rest + this.#decode(chunk);
    const held = text.endsWith("\r") ? 1 : 0; // the first half of a line end, perhaps
    const lines = text.slice(0, text.length - held).split(/\r\n|\n|\r/);
    this.#rest = lines.pop()! + text.slice(text.length - held);
    const events: string[] = [];
    for (const line of lines) {
      if (line.startsWith("data:")) {
        this.#data.push(line.slice(line.startsWith("data: ") ? 6 : 5));
        this.#numChars += line.length;
      } else if (line === "" && this.#data.length > 0) {
        events.push(this.#data.join("\n"));
        this.#data = [];
        this.#numChars = 0;
      }
    }
    if (this.#numChars + this.#rest.length > MAX_EVENT_CHARS) {
      throw new InvalidAnswerError(`An event of the stream is longer than ${MAX_EVENT_CHARS} characters.`);
    }
    return events;
  }

  #decode(chunk: Uint8Array): string {
    try {
      return this.#decoder.decode(chunk, { stream: true });
    } catch {
      throw new InvalidAnswerError("An event of the stream is not UTF-8.");
    }
  }
}
