"""The synchronous client."""

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from superdraft.client.errors import (
    ConnectionFailedError,
    InvalidAnswerError,
    RequestTimeoutError,
    StatusError,
    error_class,
)
from superdraft.client.models import Completion


class Superdraft:
    """A connection to a Superdraft server. Close it, or use it in a `with` statement.

    Args:
        base_url: "http://127.0.0.1:8000"; a trailing "/v1" does no harm.
        api_key: sent as a bearer token.
        timeout: seconds to wait for an answer.
        transport: how requests travel, for tests; None: over the network.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not math.isfinite(timeout) or timeout <= 0:
            raise ValueError(f"timeout must be a number of seconds above 0, got {timeout!r}")
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._timeout = timeout
        self._http = httpx.Client(headers=headers, timeout=timeout, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def complete(
        self, prompt: str | Sequence[int], num_drafts: int = 3, max_tokens: int = 16, **options: Any
    ) -> Completion:
        """The best `num_drafts` drafts that go on from `prompt`; fewer if there are not so many distinct ones.

        Args:
            prompt: text or token ids.
            num_drafts: k.
            max_tokens: new tokens of each draft, at most.
            options: further fields of `POST /v1/drafts`, but `stream`: `model`, `stop`, `session_id`, `timeout_ms`;
                `ngram_model` (None: no n-gram model), `alpha`, `tau`, `candidates_per_draft`; `strategy`,
                `num_branches`, `temperature`, `top_p`, `seed`, `reset_every`; `logit_bias`, `frequency_penalty`,
                `presence_penalty`; `token_healing`, `single_line`, `trim`, `min_score`. Those not given are the
                server's defaults.

        Raises:
            ConnectionFailedError: no server answers there.
            RequestTimeoutError: it took longer than the timeout.
            StatusError: it answered with an error; see its subclasses.
            InvalidAnswerError: the answer cannot be understood.
        """
        text_or_ids = prompt if isinstance(prompt, str) else list(prompt)
        body = {"prompt": text_or_ids, "num_drafts": num_drafts, "max_tokens": max_tokens, **options}
        return Completion.from_json(self._post("/v1/drafts", body))

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        try:
            response = self._http.post(self.base_url + path, json=body)
        except httpx.TimeoutException:
            raise RequestTimeoutError(f"{self.base_url} gave no answer within {self._timeout:g} s.") from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            message = f"No server answers at {self.base_url} ({error}). Is `superdraft serve` running there?"
            raise ConnectionFailedError(message) from None
        if response.is_success:
            try:
                return response.json()
            except ValueError:
                raise InvalidAnswerError(f"The answer of {self.base_url} is not JSON.") from None
        raise _status_error(response)


def _status_error(response: httpx.Response) -> StatusError:
    try:
        error = response.json()["error"]
        message, kind, param, code = (error.get(name) for name in ("message", "type", "param", "code"))
    except (ValueError, KeyError, TypeError, AttributeError):  # a proxy's page, or no server of ours
        message = kind = param = code = None
    return error_class(response.status_code)(
        message or f"The server answered with status {response.status_code}.",
        status=response.status_code,
        kind=kind,
        param=param,
        code=code,
        request_id=response.headers.get("x-request-id"),
    )
