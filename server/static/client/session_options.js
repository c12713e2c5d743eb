// Options of a typing session.
export const DEFAULT_SESSION_OPTIONS = {
    requestsPerKey: 0.3,
    maxDelayMs: 500,
    maxAnswers: 64,
    maxPromptChars: 4000,
    maxSuffixChars: 1000,
    prefetch: true,
    corrections: false,
    streams: true,
    isSingleLine: false,
};
