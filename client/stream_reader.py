"""Reader for a stream of drafts, fed with bytes."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import httpx

from superdraft.client.errors import InvalidAnswerError, StreamBrokenError
from superdraft.client.models import Snapshot, from_json
from superdraft.client.sse import EventParser
from superdraft.client.wire import DRAFTS_ROUTE, EVENT_STREAM, READ_TOO_LATE, Call, broken, error_of

_DONE = "[DONE]"

T = TypeVar("T")


class StreamReader(Generic[T]):
    """Parses the events of a stream of drafts from chunks of bytes, which may be split anywhere.

    Args:
        call: the request; its `read` parses the last event.
        response: the response that the bytes belong to; only its headers and status are used.
        base_url: the server's URL, for error messages.
    """

    def __init__(self, call: Call[T], response: httpx.Response, base_url: str) -> None:
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != EVENT_STREAM:
            raise InvalidAnswerError(
                f"{base_url} should send a stream of type {EVENT_STREAM}, but sent {media_type or 'no content type'}."
            )
        self._call = call
        self._response = response
        self._base_url = base_url
        self._parser = EventParser()
        self.answer: T | None = None
        self.is_closed = False  # the caller has left the stream

    def feed(self, chunk: bytes) -> Iterator[Snapshot]:
        """Yield the snapshots that `chunk` completes. Once the last event arrives, its value is in `answer`.

        Raises:
            StatusError: the server ended the stream with an error.
            InvalidAnswerError: an event is invalid for this route.
            StreamBrokenError: the stream ended before the finished drafts.
        """
        for data in self._parser.feed(chunk):
            if data == _DONE:
                self._check_complete()
                return
            event = _json_object(data)
            if "error" in event:
                raise error_of(event["error"], self._response)
            match event.get("object"):
                case "drafts.snapshot":
                    yield from_json(Snapshot, event, DRAFTS_ROUTE)
                case "drafts":
                    self.answer = self._call.read(event)
                case _:  # an event type of a later version
                    continue

    def end(self) -> T:
        """Return the value of the last event, after all bytes were fed.

        Raises:
            StreamBrokenError: the last event did not arrive.
        """
        self._check_complete()
        assert self.answer is not None
        return self.answer

    def _check_complete(self) -> None:
        if self.answer is None:
            raise StreamBrokenError(READ_TOO_LATE if self.is_closed else broken(self._base_url))


def _json_object(data: str) -> Mapping[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise InvalidAnswerError(f"An event of the stream ({len(data)} characters) is not a JSON object.")
    return event
