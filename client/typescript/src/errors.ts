// Errors of the client. An aborted request rejects with its signal's reason instead.
//
//   ClientError
//   ├── ConnectionFailedError      no server answers at the address, or the connection broke
//   │   └── StreamBrokenError      a stream ended before its last event
//   ├── RequestTimeoutError        the server did not respond in time
//   ├── InvalidAnswerError         the server is not Superdraft, or is an incompatible version
//   └── StatusError                the server responded with an error
//       ├── BadRequestError        invalid_request_error: the request must be corrected
//       ├── AuthenticationError    authentication_error, permission_error
//       ├── SupersededError        cancelled_error: replaced by a newer request of the same session
//       ├── NotFoundError          not_found_error: no such model, completion or route
//       ├── OverloadedError        rate_limit_error, overloaded_error: try again later
//       └── ServerError            server_error

/** Base class of all errors that the client throws on purpose. */
export class ClientError extends Error {
  override get name(): string {
    return this.constructor.name;
  }
}

/** No server answers at the address, or the connection broke before the response was complete. */
export class ConnectionFailedError extends ClientError {}

/** The connection ended before the stream's last event; the drafts so far are not the final ones. */
export class StreamBrokenError extends ConnectionFailedError {}

/** The server did not respond within the timeout. */
export class RequestTimeoutError extends ClientError {}

/** The response is not one that a Superdraft server would send. */
export class InvalidAnswerError extends ClientError {}

/** What an error response says. */
export interface StatusDetails {
  /** The HTTP status; 200 if the error arrived as an event of a stream. */
  status: number;
  /** The error's `type`. */
  kind: string | null;
  /** The field at fault, if a single field is. */
  param: string | null;
  /** A short machine-readable reason. */
  code: string | null;
  /** The server's `x-request-id`, which identifies the request in the server's log. */
  requestId: string | null;
  /** The server's `x-should-retry`; null if the header is missing. */
  shouldRetry: boolean | null;
  /** Milliseconds to wait before trying again; null if the server did not say. */
  retryAfterMs: number | null;
}

/** The server responded with an error. */
export class StatusError extends ClientError {
  readonly status: number;
  readonly kind: string | null;
  readonly param: string | null;
  readonly code: string | null;
  readonly requestId: string | null;
  readonly shouldRetry: boolean | null;
  readonly retryAfterMs: number | null;

  constructor(message: string, details: StatusDetails) {
    super(message);
    this.status = details.status;
    this.kind = details.kind;
    this.param = details.param;
    this.code = details.code;
    this.requestId = details.requestId;
    this.shouldRetry = details.shouldRetry;
    this.retryAfterMs = details.retryAfterMs;
  }
}

/** The request is invalid or too large. */
export class BadRequestError extends StatusError {}

/** The API key is missing or invalid, or does not permit the request. */
export class AuthenticationError extends StatusError {}

/** The server has no such model, completion or route. */
export class NotFoundError extends StatusError {}

/** A newer request of the same session replaced this one. */
export class SupersededError extends StatusError {}

/** The server is full, or the key's limit is reached. */
export class OverloadedError extends StatusError {}

/** The server failed. */
export class ServerError extends StatusError {}

type StatusErrorClass = new (message: string, details: StatusDetails) => StatusError;

const BY_KIND: Readonly<Record<string, StatusErrorClass>> = {
  authentication_error: AuthenticationError,
  permission_error: AuthenticationError,
  cancelled_error: SupersededError,
  not_found_error: NotFoundError,
  rate_limit_error: OverloadedError,
  overloaded_error: OverloadedError,
  server_error: ServerError,
};

const BY_STATUS: Readonly<Record<number, StatusErrorClass>> = {
  400: BadRequestError,
  401: AuthenticationError,
  403: AuthenticationError,
  404: NotFoundError,
  413: BadRequestError,
  429: OverloadedError,
  499: SupersededError,
  503: OverloadedError,
};

/** `invalid_request_error` is checked last, because the server also uses this type for unknown routes. */
function classOf(status: number, kind: string | null): StatusErrorClass {
  const found = BY_KIND[kind ?? ""] ?? BY_STATUS[status];
  if (found !== undefined) return found;
  if (kind === "invalid_request_error") return BadRequestError;
  return status >= 500 ? ServerError : StatusError;
}

/** Build the error for an `error` object in a response or in one of its events. */
export function statusError(error: unknown, response: Response): StatusError {
  const detail = typeof error === "object" && error !== null ? (error as Record<string, unknown>) : {};
  const text = (name: string): string | null => (typeof detail[name] === "string" ? detail[name] : null);
  const kind = text("type");
  const kindOfError = classOf(response.status, kind);
  return new kindOfError(text("message") ?? `The server responded with status ${response.status}.`, {
    status: response.status,
    kind,
    param: text("param"),
    code: text("code"),
    requestId: response.headers.get("x-request-id"),
    shouldRetry:
      { true: true, false: false }[response.headers.get("x-should-retry")?.trim().toLowerCase() ?? ""] ?? null,
    retryAfterMs: retryAfterMs(response.headers),
  });
}

function retryAfterMs(headers: Headers): number | null {
  const [milliseconds, seconds] = [headers.get("retry-after-ms"), headers.get("retry-after")];
  if (isAmount(milliseconds)) return Number(milliseconds);
  if (isAmount(seconds)) return Number(seconds) * 1000;
  const date = Date.parse(seconds ?? "");
  return Number.isNaN(date) ? null : Math.max(0, date - Date.now());
}

function isAmount(text: string | null): text is string {
  return text !== null && text.trim() !== "" && Number.isFinite(Number(text)) && Number(text) >= 0;
}
