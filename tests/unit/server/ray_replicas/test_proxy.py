"""What clients get when Ray's proxy, here a stand-in for it, has no answer of a replica to pass on."""

import asyncio
import json
import sys

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from superdraft.server.ray_replicas.proxy import REPLICA_HEADER, ProxyAnswers, ReplicaMark

START = {"type": "http.response.start", "status": 200}
STREAM = {**START, "headers": [(b"content-type", b"text/event-stream"), (REPLICA_HEADER.encode(), b"r1")]}
WHOLE = {**START, "headers": [(b"content-type", b"application/json"), (REPLICA_HEADER.encode(), b"r1")]}


class Answer:
    """What was sent to the client."""

    def __init__(self, messages):
        self.starts = [message for message in messages if message["type"] == "http.response.start"]
        self.bodies = [message for message in messages if message["type"] == "http.response.body"]
        self.body = b"".join(message.get("body", b"") for message in self.bodies)
        self.is_whole = bool(self.bodies) and not self.bodies[-1].get("more_body", False)

    @property
    def status(self):
        (start,) = self.starts
        return start["status"]

    def header(self, name):
        return [value.decode() for key, value in self.starts[0]["headers"] if key.decode().lower() == name]


def ask(proxy, path="/v1/drafts", headers=()):
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers), "query_string": b""}
    asyncio.run(ProxyAnswers(proxy)(scope, receive, send))
    return Answer(sent)


def saying(*messages):
    async def proxy(scope, receive, send):
        for message in messages:
            await send(message)

    return proxy


def check_lost(answer, code="replica_lost"):
    assert answer.status == 503
    assert answer.header("content-type") == ["application/json"]
    assert answer.header("content-length") == [str(len(answer.body))]
    assert answer.header("retry-after-ms") == ["1000"]
    assert answer.is_whole
    error = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("overloaded_error", code)


def test_a_request_whose_replica_died_is_answered():
    check_lost(ask(saying()))


def test_an_answer_of_which_only_the_head_came_is_taken_back():
    check_lost(ask(saying(WHOLE)))
    check_lost(ask(saying(STREAM)))


def test_its_id_is_told_as_in_any_error():
    async def proxy(scope, receive, send):
        scope["headers"].append((b"x-request-id", b"made-by-ray"))  # as Ray does for requests without one

    answer = ask(proxy)
    assert answer.header("x-request-id") == ["made-by-ray"]
    assert json.loads(answer.body)["request_id"] == "made-by-ray"


def test_a_stream_that_breaks_off_ends_with_an_error():
    answer = ask(saying(STREAM, {"type": "http.response.body", "body": b'data: {"a":1}\n\n', "more_body": True}))
    assert answer.status == 200
    first, error, done = answer.body.decode().removesuffix("\n\n").split("\n\n")
    assert first == 'data: {"a":1}'
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "replica_lost"
    assert done == "data: [DONE]"
    assert answer.is_whole


def test_half_an_answer_that_is_no_stream_is_left_as_it_is():
    answer = ask(saying(WHOLE, {"type": "http.response.body", "body": b'{"a"', "more_body": True}))
    assert answer.body == b'{"a"'
    assert not answer.is_whole  # uvicorn closes the connection: the client sees that something is missing


@pytest.mark.parametrize(
    ("status", "code"), [(404, "shutting_down"), (503, "overloaded"), (429, "overloaded"), (500, "replica_lost")]
)
def test_what_the_proxy_says_by_itself_is_said_in_the_error_shape(status, code):
    check_lost(ask(PlainTextResponse("Path '/v1/drafts' not found.", status)), code)


@pytest.mark.parametrize("status", [200, 400, 404, 429, 499, 500, 503])
def test_what_a_replica_says_is_passed_on(status):
    own = JSONResponse({"error": {"code": "its own"}}, status, headers={"retry-after": "7"})
    answer = ask(ReplicaMark(own, "r1"))
    assert answer.status == status
    assert json.loads(answer.body) == {"error": {"code": "its own"}}
    assert answer.header("retry-after") == ["7"]
    assert answer.header(REPLICA_HEADER) == ["r1"]


def test_the_second_request_id_which_ray_adds_is_dropped():
    head = {**WHOLE, "headers": [*WHOLE["headers"], (b"x-request-id", b"ours"), (b"x-request-id", b"rays")]}
    answer = ask(saying(head, {"type": "http.response.body", "body": b"{}"}))
    assert answer.header("x-request-id") == ["ours"]
    assert answer.body == b"{}"


def test_rays_own_paths_are_left_alone():
    answer = ask(PlainTextResponse("success"), path="/-/healthz")
    assert (answer.status, answer.body) == (200, b"success")


def test_what_is_no_request_passes():
    seen = []

    async def proxy(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(ProxyAnswers(proxy)({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


def test_a_proxy_loads_no_model_library():
    import subprocess

    code = "import sys, superdraft.server.ray_replicas.proxy as p; p.middlewares(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
