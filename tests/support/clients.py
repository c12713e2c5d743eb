"""A common interface to both clients, so that each test is written once, and scripted responses for them."""

import asyncio
import json

import httpx

from superdraft.client import AsyncSuperdraft, Superdraft

URL = "http://server:8000"


def http(kind, transport):
    """The argument for a client over a scripted transport."""
    return {} if transport is None else {"http_client": kind(transport=transport)}


class SyncFace:
    """The synchronous client."""

    def __init__(self, url=URL, handler=None, **options):
        transport = None if handler is None else httpx.MockTransport(handler)
        self.make = lambda: Superdraft(url, **http(httpx.Client, transport), **options)
        self.make().close()  # raises at once if the options are invalid

    def call(self, method, *args, **options):
        with self.make() as client:
            return getattr(client, method)(*args, **options)

    def complete_and(self, event, rank=0, **options):
        """Complete "hi" and report an event; return (completion, receipt)."""
        with self.make() as client:
            completion = client.complete("hi", max_tokens=2)
            return completion, getattr(completion, event)(rank, **options)

    def stream(self, seen=None, most=None, **options):
        """Stream "hi"; return (snapshots, completion). Snapshots are appended to `seen`; leave after `most` of them."""
        seen = [] if seen is None else seen
        with self.make() as client, client.stream("hi", **options) as stream:
            for snapshot in stream:
                seen.append(snapshot)
                if len(seen) == most:
                    return seen, None
            return seen, stream.result()


class AsyncFace:
    """The asynchronous client."""

    def __init__(self, url=URL, handler=None, **options):
        async def handle(request):
            return handler(request)

        transport = None if handler is None else httpx.MockTransport(handle)
        self.make = lambda: AsyncSuperdraft(url, **http(httpx.AsyncClient, transport), **options)
        self.make()  # raises at once if the options are invalid

    def call(self, method, *args, **options):
        async def run():
            async with self.make() as client:
                return await getattr(client, method)(*args, **options)

        return asyncio.run(run())

    def complete_and(self, event, rank=0, **options):
        async def run():
            async with self.make() as client:
                completion = await client.complete("hi", max_tokens=2)
                return completion, await getattr(completion, event)(rank, **options)

        return asyncio.run(run())

    def stream(self, seen=None, most=None, **options):
        async def run():
            snapshots = [] if seen is None else seen
            async with self.make() as client, client.stream("hi", **options) as stream:
                async for snapshot in stream:
                    snapshots.append(snapshot)
                    if len(snapshots) == most:
                        return snapshots, None
                return snapshots, await stream.result()

        return asyncio.run(run())


FACES = {"sync": SyncFace, "async": AsyncFace}

ANSWER = {
    "id": "drafts-1",
    "object": "drafts",
    "model": "tiny",
    "drafts": [
        {
            "index": 0,
            "text": " be",
            "tokens": [" be"],
            "token_ids": [325],
            "score": -0.5,
            "token_logprobs": [-1.5],
            "finish_reason": "length",
            "from_a_later_version": 1,
        }
    ],
    "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3, "cached_tokens": 0, "forward_rows": 0},
    "timings": {"queue_ms": 0.1, "prefill_ms": 1, "decode_ms": 2.0, "ngram_ms": 0.5, "total_ms": 3.1},
    "warnings": ["careful"],
}
SNAPSHOT = {
    "object": "drafts.snapshot",
    "id": "drafts-1",
    "step": 1,
    "stable_text": " ",
    "drafts": [{"index": 0, "text": " 日本🦙", "score": -1}],
}
ERROR = {"message": "n must be 1.", "type": "t", "param": "n", "code": "c"}
EVENT_STREAM = {"content-type": "text/event-stream; charset=utf-8"}


def answering(face, status, body, headers=(), **options):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return face(handler=lambda request: httpx.Response(status, content=content, headers=dict(headers)), **options)


def in_turn(face, *answers, **options):
    """A client that gets the given responses and exceptions in order, and keeps the requests in `seen`."""
    left, seen = iter(answers), []

    def handler(request):
        seen.append(request)
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    made = face(handler=handler, **options)
    made.seen = seen
    return made


class Chunks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body in pieces; an exception among the pieces breaks the connection."""

    def __init__(self, *pieces):
        self.pieces = pieces
        self.is_closed = False

    def _piece(self, piece):
        if isinstance(piece, Exception):
            raise piece
        return piece

    def __iter__(self):
        return (self._piece(piece) for piece in self.pieces)

    async def __aiter__(self):
        for piece in self.pieces:
            yield self._piece(piece)

    def close(self):
        self.is_closed = True

    async def aclose(self):
        self.is_closed = True
