// Delay between a key press and its request, adapted to the typist and the server.
const KEPT_PAUSES = 48;
const ENOUGH_PAUSES = 12;
const FREE_SHARE = 0.1; // low, since an answer that arrives after the next key still helps if a draft contains that key
const LONGEST_PAUSE_MS = 3000;
const FIRST_LATENCY_MS = 100;
const FIRST_MISS_SHARE = 0.7;
const LATENCY_WEIGHT = 0.25; // weight of a new value in the running mean
const MISS_WEIGHT = 1 / 16;
// Used until enough real pauses are known: those of a 60 wpm typist, log-normal with median 150 ms and sigma 0.5.
const USUAL_PAUSES_MS = [60, 80, 100, 120, 140, 160, 190, 230, 290, 410];
/**
 * Estimates how long to wait before sending, from the pauses between keys and the server's latency.
 *
 * Requests should be few, yet an answer should sometimes arrive before the next key. Two conditions must therefore hold
 * for the pauses that are longer than the wait. Their share of all pauses is within the budget, given how often a key
 * press has no draft yet; and at least one in ten of them lasts until the answer arrives.
 */
export class Pace {
    latencyMs = FIRST_LATENCY_MS;
    #requestsPerKey;
    #maxDelayMs;
    #pausesMs = [];
    #lastKeyMs = null;
    #missShare = FIRST_MISS_SHARE;
    constructor(requestsPerKey, maxDelayMs) {
        this.#requestsPerKey = requestsPerKey;
        this.#maxDelayMs = maxDelayMs;
    }
    /** Record that a character was typed. */
    key(nowMs) {
        if (this.#lastKeyMs !== null) {
            this.#pausesMs.push(Math.min(nowMs - this.#lastKeyMs, LONGEST_PAUSE_MS));
            if (this.#pausesMs.length > KEPT_PAUSES)
                this.#pausesMs.shift();
        }
        this.#lastKeyMs = nowMs;
    }
    /** Record an action other than typing; the pause before the next key is then ignored. */
    interrupt() {
        this.#lastKeyMs = null;
    }
    /** Record whether a key press was answered from the cache. */
    looked(found) {
        this.#missShare += MISS_WEIGHT * (Number(!found) - this.#missShare);
    }
    /** Record how long a request took until there was something to show. */
    answered(latencyMs) {
        this.latencyMs += LATENCY_WEIGHT * (latencyMs - this.latencyMs);
    }
    /** Milliseconds to wait for another key before sending a request. */
    get delayMs() {
        const pauses = this.#sorted();
        const shareSkipped = Math.max(0, 1 - this.#requestsPerKey / Math.max(this.#missShare, 1e-9));
        const at = Math.min(Math.trunc(shareSkipped * pauses.length), pauses.length - 1);
        const forBudgetMs = shareSkipped > 0 ? pauses[at] : 0;
        return Math.min(Math.max(forBudgetMs, untilLikelyFree(pauses, this.latencyMs)), this.#maxDelayMs);
    }
    /** The median pause between keys. */
    get typicalPauseMs() {
        const pauses = this.#sorted();
        return pauses[pauses.length >> 1];
    }
    #sorted() {
        const usual = this.#pausesMs.length < ENOUGH_PAUSES ? USUAL_PAUSES_MS : [];
        return [...this.#pausesMs, ...usual].sort((a, b) => a - b);
    }
}
/** The shortest wait after which enough of the sorted pauses last at least `latencyMs` longer. */
function untilLikelyFree(pauses, latencyMs) {
    const longerThan = (waitMs) => pauses.filter((pauseMs) => pauseMs > waitMs).length;
    const found = [0, ...pauses].find((waitMs) => longerThan(waitMs + latencyMs) >= FREE_SHARE * longerThan(waitMs));
    return found ?? pauses.at(-1);
}
