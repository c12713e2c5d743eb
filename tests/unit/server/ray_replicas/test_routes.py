"""A typist's requests have the same route, whatever they name; other requests have none."""

import asyncio
import json

import pytest

from superdraft.server.ray_replicas.routes import ROUTE_HEADER, START_CHARS, TypistRoutes

LONG = "Dear Anna, thank you for your letter, which I read with great pleasure on the train."


def ask(body=None, headers=(), method="POST", parts=1):
    """The route that the proxy sees, and the body."""
    data = b"" if body is None else json.dumps(body).encode()
    size = -(-len(data) // parts) or 1
    chunks = [data[start : start + size] for start in range(0, len(data), size)] or [b""]
    messages = [
        {"type": "http.request", "body": chunk, "more_body": index + 1 < len(chunks)}
        for index, chunk in enumerate(chunks)
    ]
    seen = []

    async def proxy(scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        seen.append((dict(scope["headers"]).get(ROUTE_HEADER.encode()), body))

    async def receive():
        return messages.pop(0)

    scope = {"type": "http", "method": method, "path": "/v1/drafts", "headers": list(headers)}
    asyncio.run(TypistRoutes(proxy)(scope, receive, None))
    ((route, passed),) = seen
    assert passed == data
    return route


def test_a_session_has_one_route_whether_the_header_or_the_body_names_it():
    by_header = ask({"prompt": "a"}, [(b"x-session-id", b"window")])
    assert by_header is not None
    assert ask({"prompt": LONG, "session_id": "window"}) == by_header
    assert ask({"prompt": LONG, "session_id": "another"}) != by_header
    assert ask({"prompt": "a"}, [(b"x-session-id", b"window"), (b"authorization", b"Bearer k")]) != by_header


@pytest.mark.parametrize("name", ["prompt", "input_prefix", "prefix"])
def test_without_a_session_the_beginning_of_the_document_decides(name):
    first = ask({"model": "x", name: LONG})
    assert first is not None
    assert ask({"model": "x", name: LONG + " It made"}) == first
    assert ask({name: LONG, "max_tokens": 3}) == first
    assert ask({name: LONG.replace("Anna", "Emma")}) != first
    assert ask({name: LONG}, [(b"x-api-key", b"k")]) != first


def test_other_requests_are_spread_and_no_client_chooses_its_replica():
    for body in (None, {"prompt": LONG[: START_CHARS - 1]}, {"prompt": [1, 2]}, {"text": LONG}):
        assert ask(body) is None
    assert ask(None, method="GET") is None
    assert ask({"prompt": "a"}, [(ROUTE_HEADER.encode(), b"mine")]) is None
    text = json.dumps({"session_id": "quoted", "prompt": LONG})
    assert ask({"suffix": text}) is None


def test_a_body_in_parts_is_passed_on_whole():
    assert ask({"prompt": LONG, "suffix": "x" * 5000}, parts=3) is not None
