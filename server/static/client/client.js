// Client of a server: one method per route. Uses `fetch` and nothing else.
import { InvalidAnswerError, statusError } from "./errors.js";
import { Exchange } from "./exchange.js";
import { retryDelayMs } from "./retries.js";
import { DraftsStream, isDraftsAnswer } from "./stream.js";
const DRAFTS_ROUTE = "/v1/drafts";
const EVENT_STREAM = "text/event-stream";
/** A Superdraft server at `baseUrl`, the address of its playground; a trailing "/v1" is ignored. */
export class Superdraft {
    baseUrl;
    #options;
    constructor(baseUrl, options = {}) {
        this.baseUrl = baseUrl.replace(/\/+$/, "").replace(/\/v1$/, "");
        const { apiKey, timeoutMs = 30_000, maxRetries = 2, headers = {} } = options;
        if (!(timeoutMs > 0))
            throw new RangeError(`timeoutMs must be above 0, got ${timeoutMs}`);
        this.#options = {
            timeoutMs,
            maxRetries,
            headers: apiKey === undefined ? headers : { ...headers, authorization: `Bearer ${apiKey}` },
            fetch: options.fetch ?? ((...request) => fetch(...request)),
        };
    }
    /** The best drafts that continue `prompt`, or fewer if there are not enough distinct ones. */
    async complete(prompt, options = {}, request = {}) {
        const answer = await this.#json("POST", DRAFTS_ROUTE, { prompt, ...options }, request);
        if (!isDraftsAnswer(answer))
            throw this.#invalid(DRAFTS_ROUTE);
        return answer;
    }
    /** The drafts of `complete` while they grow. Leaving the loop over the stream early cancels the request. */
    async stream(prompt, options = {}, request = {}) {
        const exchange = await this.#open("POST", DRAFTS_ROUTE, { prompt, ...options, stream: true }, request);
        if (!exchange.response.headers.get("content-type")?.startsWith(EVENT_STREAM)) {
            exchange.end();
            throw this.#invalid(DRAFTS_ROUTE);
        }
        return new DraftsStream(exchange.response, exchange, this.baseUrl);
    }
    /** The values that the option `model` accepts. */
    async models(request = {}) {
        return (await this.#list("/v1/models", request));
    }
    /** The n-gram models on the server. */
    async ngramModels(request = {}) {
        return (await this.#list("/v1/ngram_models", request));
    }
    /** What requests may ask for. */
    async limits(request = {}) {
        const answer = await this.#json("GET", "/v1/limits", null, request);
        if (answer["object"] !== "limits")
            throw this.#invalid("/v1/limits");
        return answer;
    }
    /**
     * Report what the user did with a draft, `elapsedMs` after it was shown. Report `shown` for a draft that was on the
     * screen long enough to be read. The server counts each event once.
     */
    async feedback(completionId, event, rank = 0, elapsedMs, request = {}) {
        const body = {
            completion_id: completionId,
            event,
            index: rank,
            ...(elapsedMs !== undefined && { elapsed_ms: elapsedMs }),
        };
        const answer = await this.#json("POST", "/v1/feedback", body, request);
        if (typeof answer["counted"] !== "boolean")
            throw this.#invalid("/v1/feedback");
        return answer;
    }
    async #list(path, request) {
        const { data } = await this.#json("GET", path, null, request);
        if (!Array.isArray(data))
            throw this.#invalid(path);
        return data;
    }
    async #json(method, path, body, request) {
        const exchange = await this.#open(method, path, body, request);
        const answer = await exchange.run(async () => parsed(await exchange.response.text())).finally(() => exchange.end());
        if (answer === null)
            throw this.#invalid(path);
        return answer;
    }
    /** Send a request, with retries, and return the successful response, its body unread. */
    async #open(method, path, body, request) {
        const maxRetries = request.maxRetries ?? this.#options.maxRetries;
        for (let numRetries = 0;; numRetries += 1) {
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
                    if (exchange.response.ok)
                        return;
                    throw statusError(parsed(await exchange.response.text())?.["error"], exchange.response);
                });
                return exchange;
            }
            catch (error) {
                exchange.end();
                const delayMs = retryDelayMs(error, numRetries, maxRetries);
                if (delayMs === null)
                    throw error;
                await pause(delayMs, request.signal);
            }
        }
    }
    #invalid(path) {
        return new InvalidAnswerError(`The response of ${this.baseUrl} is not what a Superdraft server sends for ${path}.`);
    }
}
function parsed(text) {
    try {
        const value = JSON.parse(text);
        return typeof value === "object" && value !== null ? value : null;
    }
    catch {
        return null;
    }
}
function pause(delayMs, signal) {
    return new Promise((resolve, reject) => {
        signal?.throwIfAborted();
        const timer = setTimeout(resolve, delayMs);
        signal?.addEventListener("abort", () => {
            clearTimeout(timer);
            reject(signal.reason);
        });
    });
}
