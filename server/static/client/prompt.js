// The parts of a text that are sent.
/**
 * The end of a text, at most `maxChars` long. Its beginning moves in steps of a quarter of this limit instead of with
 * every key, so that the server can reuse its work for the previous prompt.
 */
export function promptOf(text, maxChars) {
    const step = Math.max(1, Math.floor(maxChars / 4));
    const excess = text.length - maxChars;
    if (excess <= 0)
        return text;
    const start = Math.ceil(excess / step) * step;
    return text.slice(isInsidePair(text, start) ? start + 1 : start);
}
/** The beginning of a text, at most `maxChars` long. */
export function beginningOf(text, maxChars) {
    return text.slice(0, isInsidePair(text, maxChars) ? maxChars - 1 : maxChars);
}
/** Whether `at` lies between the two halves of a character; JSON cannot hold half of it. */
function isInsidePair(text, at) {
    const code = text.charCodeAt(at);
    return code >= 0xdc00 && code < 0xe000;
}
