"""A stream of drafts from its bytes."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import httpx

from superdraft.client.errors import InvalidAnswerError, StreamBrokenError
from superdraft.client.models import Snapshot, from_json
from superdraft.client.sse import EventParser
from superdraft.client.wire import DRAFTS_ROUTE, EVENT_STREAM, Call, broken, error_of

_DONE = "[DONE]"

T = TypeVar("T")


class StreamReader(Generic[T]):
    """Reads the events of a stream of drafts from bytes, however they are cut up.

    Args:
        call: the request, which reads the last event.
        response: whose events they are; its content is not touched.
        base_url: for messages.
        finish: what is done to the last event's value.
    """

    def __init__(self, call: Call[T], response: httpx.Response, base_url: str, finish: Callable[[T], T]) -> None:
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != EVENT_STREAM:
            raise InvalidAnswerError(f"{base_url} answers a stream with {media_type or 'no content type'}.")
        self._call = call
        self._response = response
        self._base_url = base_url
        self._finish = finish
        self._parser = EventParser()
        self.answer: T | None = None

    def feed(self, chunk: bytes) -> Iterator[Snapshot]:
        """The snapshots that `chunk` completes. The last event's value is in `answer` when it has come.

        Raises:
            StatusError: the server ended the stream with an error.
            InvalidAnswerError: an event is not what the route sends.
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
                    self.answer = self._finish(self._call.read(event))
                case _:  # of a later version
                    continue

    def end(self) -> T:
        """The last event's value, when all bytes have come.

        Raises:
            StreamBrokenError: it has not come.
        """
        self._check_complete()
        assert self.answer is not None
        return self.answer

    def _check_complete(self) -> None:
        if self.answer is None:
            raise StreamBrokenError(broken(self._base_url))


def _json_object(data: str) -> Mapping[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise InvalidAnswerError(f"An event of the stream, of {len(data)} characters, is not a JSON object.")
    return event
