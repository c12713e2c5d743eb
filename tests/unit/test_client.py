"""The client against scripted answers."""

import json

import httpx
import pytest

from superdraft.client import Completion, Draft, Superdraft, Timings, Usage
from superdraft.client.errors import (
    AuthenticationError,
    BadRequestError,
    ConnectionFailedError,
    InvalidAnswerError,
    NotFoundError,
    OverloadedError,
    RequestTimeoutError,
    ServerError,
    StatusError,
    SupersededError,
)

ANSWER = {
    "id": "drafts-1",
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
    "timings": {"queue_ms": 0.1, "prefill_ms": 1.0, "decode_ms": 2.0, "ngram_ms": 0.5, "total_ms": 3.1},
    "warnings": ["careful"],
}


def scripted(handler, **options):
    return Superdraft("http://server:8000/", transport=httpx.MockTransport(handler), **options)


def answering(status, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return scripted(lambda request: httpx.Response(status, content=content, headers=headers))


def test_answer_becomes_values():
    assert answering(200, ANSWER).complete("hi") == Completion(
        id="drafts-1",
        model="tiny",
        drafts=(Draft(0, " be", (" be",), (325,), -0.5, (-1.5,), "length"),),
        usage=Usage(2, 1, 3, 0, 0),
        timings=Timings(0.1, 1.0, 2.0, 0.5, 3.1),
        warnings=("careful",),
    )


def test_request_holds_what_was_given_and_no_more():
    seen = []

    def handler(request):
        seen.append(request)
        return httpx.Response(200, json=ANSWER)

    with scripted(handler, api_key="key") as client:
        client.complete((1, 2), num_drafts=5, max_tokens=4, ngram_model=None, strategy="sample", logit_bias={5: -100})
        client.complete("hi")
    assert str(seen[0].url) == "http://server:8000/v1/drafts"
    assert seen[0].headers["authorization"] == "Bearer key"
    assert json.loads(seen[0].content) == {
        "prompt": [1, 2],
        "num_drafts": 5,
        "max_tokens": 4,
        "ngram_model": None,
        "strategy": "sample",
        "logit_bias": {"5": -100},
    }
    assert json.loads(seen[1].content) == {"prompt": "hi", "num_drafts": 3, "max_tokens": 16}


@pytest.mark.parametrize("url", ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"])
def test_base_url_with_or_without_v1(url):
    assert Superdraft(url).base_url == "http://a:1"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (413, BadRequestError),
        (401, AuthenticationError),
        (404, NotFoundError),
        (499, SupersededError),
        (429, OverloadedError),
        (503, OverloadedError),
        (500, ServerError),
        (418, StatusError),
    ],
)
def test_error_carries_the_servers_words(status, kind):
    body = {"error": {"message": "n must be 1.", "type": "t", "param": "n", "code": "c"}}
    client = answering(status, body, **{"x-request-id": "req-1"})
    with pytest.raises(kind) as caught:
        client.complete("hi")
    error = caught.value
    assert type(error) is kind
    assert str(error) == "n must be 1."
    assert (error.status, error.kind, error.param, error.code, error.request_id) == (status, "t", "n", "c", "req-1")


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"[]", b'{"error": "text"}', b"\xff"])
def test_error_of_something_else(body):
    with pytest.raises(ServerError, match="status 502"):
        answering(502, body).complete("hi")


@pytest.mark.parametrize("body", [b"<html>", [], {}, {**ANSWER, "drafts": [{}]}, {**ANSWER, "usage": None}, None])
def test_answer_of_something_else(body):
    with pytest.raises(InvalidAnswerError):
        answering(200, body).complete("hi")


def test_nobody_there():
    def refuse(request):
        raise httpx.ConnectError("refused")

    with pytest.raises(ConnectionFailedError, match=r"http://server:8000.*superdraft serve"):
        scripted(refuse).complete("hi")


def test_too_slow():
    def sleep(request):
        raise httpx.ReadTimeout("slow")

    with pytest.raises(RequestTimeoutError, match="2 s"):
        scripted(sleep, timeout=2).complete("hi")


@pytest.mark.parametrize("url", ["server:8000", "ftp://server", "http://ser ver", "http://[::1"])
def test_address_that_is_none(url):
    with pytest.raises(ConnectionFailedError), Superdraft(url) as client:
        client.complete("hi")


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_timeout_must_be_positive(timeout):
    with pytest.raises(ValueError):
        Superdraft("http://a", timeout=timeout)
