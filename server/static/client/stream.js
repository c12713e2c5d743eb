// Stream of growing drafts: snapshots, then the answer.
import { ConnectionFailedError, InvalidAnswerError, StreamBrokenError, statusError } from "./errors.js";
import { EventParser } from "./sse.js";
const DONE = "[DONE]";
/** Whether a value has the fields of an answer that the client itself uses. */
export function isDraftsAnswer(value) {
    const answer = value;
    return typeof answer === "object" && answer?.object === "drafts" && isDrafted(answer);
}
function isDrafted(event) {
    return typeof event.id === "string" && Array.isArray(event.drafts) && event.drafts.every(isDraft);
}
function isDraft(draft) {
    const { index, text, score } = (draft ?? {});
    return typeof index === "number" && typeof text === "string" && typeof score === "number";
}
/** Growing drafts. Iterate over the snapshots, once, and then call `result`; or call `result` at once. */
export class DraftsStream {
    #response;
    #connection;
    #baseUrl;
    #snapshots;
    #answer = null;
    constructor(response, connection, baseUrl) {
        this.#response = response;
        this.#connection = connection;
        this.#baseUrl = baseUrl;
        this.#snapshots = this.#read();
    }
    [Symbol.asyncIterator]() {
        return this.#snapshots;
    }
    /** Read the rest of the stream and return the finished drafts. */
    async result() {
        for await (const _ of this.#snapshots)
            ;
        if (this.#answer === null)
            throw this.#broken();
        return this.#answer;
    }
    async *#read() {
        const parser = new EventParser();
        try {
            const reader = this.#response.body?.getReader();
            while (true) {
                const part = await this.#connection
                    .run(async () => reader?.read())
                    .catch((error) => {
                    throw error instanceof ConnectionFailedError ? this.#broken() : error;
                });
                if (part === undefined || part.done)
                    break;
                for (const data of parser.feed(part.value)) {
                    const snapshot = data === DONE ? null : this.#take(data);
                    if (snapshot !== null)
                        yield snapshot;
                }
            }
            if (this.#answer === null)
                throw this.#broken();
        }
        finally {
            this.#connection.end();
        }
    }
    /** Keep an answer, return a snapshot, ignore events of later versions. */
    #take(data) {
        const event = jsonObject(data);
        if ("error" in event)
            throw statusError(event["error"], this.#response);
        if (event["object"] === "drafts") {
            if (!isDraftsAnswer(event))
                throw invalid(data);
            this.#answer = event;
        }
        else if (event["object"] === "drafts.snapshot") {
            if (!isDrafted(event))
                throw invalid(data);
            return event;
        }
        return null;
    }
    #broken() {
        return new StreamBrokenError(`The connection to ${this.#baseUrl} ended before the drafts were finished.`);
    }
}
function jsonObject(data) {
    try {
        const value = JSON.parse(data);
        if (typeof value === "object" && value !== null)
            return value;
    }
    catch {
        // reported below
    }
    throw invalid(data);
}
function invalid(data) {
    return new InvalidAnswerError(`An event of the stream (${data.length} characters) is not one of a Superdraft server.`);
}
