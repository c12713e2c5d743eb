"""Both clients against scripted streams."""

import asyncio
import itertools
import json

import httpx
import pytest
from support.clients import ANSWER, ERROR, EVENT_STREAM, FACES, SNAPSHOT, Chunks, answering, in_turn

from superdraft.client import AsyncSuperdraft, Superdraft
from superdraft.client.errors import (
    BadRequestError,
    InvalidAnswerError,
    OverloadedError,
    RequestTimeoutError,
    StatusError,
    StreamBrokenError,
    SupersededError,
)


@pytest.fixture(params=FACES)
def face(request):
    return FACES[request.param]


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between attempts, which take no time."""
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr("superdraft.client.client.time.sleep", slept.append)
    monkeypatch.setattr("superdraft.client.async_client.asyncio.sleep", sleep)
    return slept


def sse(*events, end="data: [DONE]\n\n"):
    return "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events).encode() + end.encode()


def streaming(face, *pieces, headers=EVENT_STREAM):
    body = Chunks(*pieces)
    client = in_turn(face, httpx.Response(200, stream=body, headers={**headers, "x-request-id": "req-1"}))
    client.body = body
    return client


def one_by_one(content):
    return [content[i : i + 1] for i in range(len(content))]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("cut", [one_by_one, lambda content: [content]])
def test_stream_byte_by_byte_with_every_line_end(face, line_end, cut):
    content = b": keep-alive\n\nevent: x\nid: 5\n" + sse(SNAPSHOT, ANSWER)
    content = b"\xef\xbb\xbf" + content.replace(b"\n", line_end.encode())
    client = streaming(face, *cut(content))
    (snapshot,), completion = client.stream(num_drafts=2)
    assert snapshot.drafts[0].text == " 日本🦙"
    assert (snapshot.step, snapshot.stable_text, snapshot.drafts[0].score) == (1, " ", -1.0)
    assert completion.drafts[0].text == " be"
    assert client.body.is_closed
    assert json.loads(client.seen[0].content)["stream"] is True
    assert client.seen[0].headers["accept"] == "text/event-stream"


def test_snapshots_come_when_they_are_complete(face):
    first, rest = sse(SNAPSHOT, end=""), sse({**SNAPSHOT, "step": 2}, ANSWER)
    seen = []
    client = streaming(face, first, httpx.ReadError("gone"), rest)
    with pytest.raises(StreamBrokenError, match="before the drafts were finished"):
        client.stream(seen)
    assert [snapshot.step for snapshot in seen] == [1]
    assert client.body.is_closed
    assert len(client.seen) == 1  # what has begun is not tried again


@pytest.mark.parametrize(
    ("content", "expected", "message"),
    [
        (sse(SNAPSHOT, end=""), StreamBrokenError, "before the drafts"),
        (b"", StreamBrokenError, "before the drafts"),
        (sse(SNAPSHOT), StreamBrokenError, "before the drafts"),  # [DONE], but no drafts
        (sse(SNAPSHOT, ANSWER, end="")[:-1], StreamBrokenError, "before the drafts"),  # the event is unfinished
        (b"data: {broken\n\n", InvalidAnswerError, r"of the stream \(7 characters\) is not a JSON object"),
        (b"data: " + b"[" * 100_000 + b"\n\n", InvalidAnswerError, "not a JSON object"),
        (b"data: [1]\n\n", InvalidAnswerError, "not a JSON object"),
        (b"data: \xff\n\n", InvalidAnswerError, "not UTF-8"),
        (b'data: {"object":"drafts.snapshot"}\n\n', InvalidAnswerError, "has no id"),
        (sse({"error": {**ERROR, "type": "overloaded_error"}}), OverloadedError, "n must be 1"),
        (sse(SNAPSHOT, {"error": {**ERROR, "type": "cancelled_error"}}), SupersededError, "n must be 1"),
        (sse({"error": {**ERROR, "type": "invalid_request_error"}}), BadRequestError, "n must be 1"),
    ],
)
@pytest.mark.parametrize("cut", [one_by_one, lambda content: [content]])
def test_streams_that_fail(face, content, expected, message, cut):
    client = streaming(face, *cut(content))
    with pytest.raises(expected, match=message) as caught:
        client.stream()
    assert client.body.is_closed
    if isinstance(caught.value, StatusError):
        assert (caught.value.status, caught.value.request_id) == (200, "req-1")


def test_events_of_later_versions_are_left_aside(face):
    client = streaming(face, sse({"object": "drafts.thoughts"}, SNAPSHOT, ANSWER))
    snapshots, completion = client.stream()
    assert (len(snapshots), completion.id) == (1, "drafts-1")


def test_answer_that_is_no_stream(face):
    client = streaming(face, b"<html>", headers={"content-type": "text/html"})
    with pytest.raises(InvalidAnswerError, match="text/html"):
        client.stream()
    assert client.body.is_closed


def test_refused_stream_is_an_ordinary_error_and_tried_again(face, pauses):
    busy = httpx.Response(503, stream=Chunks(json.dumps({"error": ERROR}).encode()), headers={"retry-after-ms": "7"})
    success = httpx.Response(200, stream=Chunks(sse(ANSWER)), headers=EVENT_STREAM)
    assert in_turn(face, busy, success).stream()[1].id == "drafts-1"
    assert pauses == [0.007]
    with pytest.raises(BadRequestError, match="n must be 1"):
        answering(face, 400, {"error": ERROR}).stream()


def test_slow_stream_times_out(face):
    with pytest.raises(RequestTimeoutError, match=r"1.5 s"):
        streaming(face, sse(SNAPSHOT, end=""), httpx.ReadTimeout("slow")).stream(timeout=1.5)


def test_a_stream_cannot_be_read_after_its_block():
    def handler(request):
        return httpx.Response(200, stream=Chunks(sse(ANSWER)), headers=EVENT_STREAM)

    async def read_late():
        async with AsyncSuperdraft(http_client=httpx.AsyncClient(transport=httpx.MockTransport(handler))) as client:
            async with client.stream("hi") as stream:
                pass
            await stream.result()

    with Superdraft(http_client=httpx.Client(transport=httpx.MockTransport(handler))) as client:
        with client.stream("hi") as stream:
            pass
        with pytest.raises(StreamBrokenError, match="`with` block"):
            stream.result()
    with pytest.raises(StreamBrokenError, match="`with` block"):
        asyncio.run(read_late())


def test_leaving_early_closes_the_connection(face):
    client = streaming(face, *itertools.repeat(sse(SNAPSHOT, end=""), 5))
    assert len(client.stream(most=2)[0]) == 2
    assert client.body.is_closed
