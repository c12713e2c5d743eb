// Retry policy for failed requests: the server's instructions, or else exponential backoff.
import { ConnectionFailedError, StatusError, StreamBrokenError } from "./errors.js";
const FIRST_DELAY_MS = 200;
const MAX_DELAY_MS = 5000;
const RETRIED_STATUSES = [408, 409, 429];
/**
 * The milliseconds to wait before the next attempt, or null if there should be none.
 *
 * The server's `x-should-retry` decides. Without it, failed connections and the statuses 408, 409, 429 and 5xx are
 * retried. Timeouts are not: the caller has no time left. Up to a quarter of the delay is subtracted at random, so that
 * clients that failed together do not retry together.
 */
export function retryDelayMs(error, numRetries, maxRetries) {
    if (numRetries >= maxRetries || !isTemporary(error))
        return null;
    if (error instanceof StatusError && error.retryAfterMs !== null) {
        return error.retryAfterMs <= MAX_DELAY_MS ? error.retryAfterMs : null;
    }
    return Math.min(FIRST_DELAY_MS * 2 ** numRetries, MAX_DELAY_MS) * (1 - Math.random() / 4);
}
function isTemporary(error) {
    if (error instanceof StatusError) {
        return error.shouldRetry ?? (RETRIED_STATUSES.includes(error.status) || error.status >= 500);
    }
    return error instanceof ConnectionFailedError && !(error instanceof StreamBrokenError);
}
