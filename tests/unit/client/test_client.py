"""Both clients against scripted answers."""

import asyncio
import copy
import json
import pickle
from decimal import Decimal

import httpx
import pytest
from support.clients import ANSWER, ERROR, FACES, Chunks, answering, in_turn

from superdraft.client import AsyncSuperdraft, Completion, Draft, DraftsAnswer, Model, Superdraft, Timings, Usage
from superdraft.client.errors import (
    AuthenticationError,
    BadRequestError,
    ClientError,
    ConnectionFailedError,
    InvalidAddressError,
    InvalidAnswerError,
    NotFoundError,
    OverloadedError,
    RequestTimeoutError,
    ServerError,
    StatusError,
    SupersededError,
)
from superdraft.client.wire import API_KEY_VARIABLE, URL_VARIABLE
from superdraft.server.settings_sources import CLIENT_VARIABLES, load_settings


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


def test_answer_becomes_values(face):
    completion = answering(face, 200, ANSWER).call("complete", "hi")
    assert completion.drafts == (Draft(0, " be", (" be",), (325,), -0.5, (-1.5,), "length"),)
    assert completion.usage == Usage(2, 1, 3, 0, 0)
    assert completion.timings == Timings(0.1, 1.0, 2.0, 0.5, 3.1)
    assert (completion.id, completion.model, completion.warnings) == ("drafts-1", "tiny", ("careful",))
    assert completion == type(completion).from_json(ANSWER)
    assert isinstance(completion, DraftsAnswer)


def test_request_holds_what_was_given_and_no_more(face):
    client = in_turn(face, httpx.Response(200, json=ANSWER), api_key="key", url="http://server:8000/")
    client.call("complete", (1, 2), num_drafts=5, max_tokens=4, ngram_model=None, logit_bias={5: -100}, timeout=3)
    assert str(client.seen[0].url) == "http://server:8000/v1/drafts"
    assert client.seen[0].headers["authorization"] == "Bearer key"
    assert client.seen[0].headers["content-type"] == "application/json"
    assert "x-session-id" not in client.seen[0].headers
    assert client.seen[0].extensions["timeout"] == dict.fromkeys(("connect", "read", "write", "pool"), 3)
    assert json.loads(client.seen[0].content) == {
        "prompt": [1, 2],
        "num_drafts": 5,
        "max_tokens": 4,
        "ngram_model": None,
        "logit_bias": {"5": -100},
    }
    plain = in_turn(face, httpx.Response(200, json=ANSWER))
    plain.call("complete", "hi")
    assert json.loads(plain.seen[0].content) == {"prompt": "hi", "num_drafts": 3, "max_tokens": 16}
    assert "authorization" not in plain.seen[0].headers


@pytest.mark.parametrize(
    ("session_id", "header"),
    [("window-1", "window-1"), ("ä b%\r\nx: y", "%C3%A4%20b%25%0D%0Ax:%20y")],
)
def test_session_goes_in_the_body_and_in_a_header(face, session_id, header):
    client = in_turn(face, httpx.Response(200, json=ANSWER))
    client.call("complete", "hi", session_id=session_id)
    assert json.loads(client.seen[0].content)["session_id"] == session_id
    assert client.seen[0].headers["x-session-id"] == header


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "half \ud83e"}, "prompt contains half a surrogate"),
        ({"prompt": "hi", "alpha": float("nan")}, "alpha cannot be sent as JSON"),
        ({"prompt": "hi", "min_score": Decimal(-1)}, "min_score cannot be sent as JSON: .* Decimal"),
        ({"prompt": "hi", "stop": b"\n"}, "stop cannot be sent as JSON: .* bytes"),
    ],
)
def test_what_json_cannot_hold_is_refused_here(face, options, message):
    client = in_turn(face)
    with pytest.raises(ValueError, match=message):
        client.call("complete", **options)
    assert client.seen == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": b"hi"}, "got bytes"),  # whose items are integers, as those of a prompt of token ids
        ({"prompt": None}, "got NoneType"),
        ({"prompt": "hi", "stream": True}, "method `stream`"),
    ],
)
def test_arguments_that_would_be_misread_are_refused_here(face, options, message):
    client = in_turn(face)
    with pytest.raises(TypeError, match=message):
        client.call("complete", **options)
    assert client.seen == []


@pytest.mark.parametrize("url", ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"])
def test_base_url_with_or_without_v1(url):
    assert Superdraft(url).base_url == "http://a:1"


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (400, "t", BadRequestError),
        (413, "t", BadRequestError),
        (401, "t", AuthenticationError),
        (403, "permission_error", AuthenticationError),
        (404, "t", NotFoundError),
        (404, "invalid_request_error", NotFoundError),
        (405, "invalid_request_error", BadRequestError),
        (499, "t", SupersededError),
        (429, "t", OverloadedError),
        (503, "t", OverloadedError),
        (500, "overloaded_error", OverloadedError),
        (500, "t", ServerError),
        (418, "t", StatusError),
    ],
)
def test_error_carries_the_servers_words(face, status, kind, expected):
    headers = {"x-request-id": "req-1", "retry-after-ms": "1500"}
    client = answering(face, status, {"error": {**ERROR, "type": kind}}, headers, max_retries=0)
    with pytest.raises(expected) as caught:
        client.call("complete", "hi")
    error = caught.value
    assert type(error) is expected
    assert str(error) == "n must be 1."
    assert (error.status, error.kind, error.param, error.code, error.request_id) == (status, kind, "n", "c", "req-1")
    assert (error.should_retry, error.retry_after_s) == (None, 1.5)


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"[]", b'{"error": "text"}', b"\xff", b'{"error": []}'])
def test_error_of_something_else(face, body):
    with pytest.raises(ServerError, match="status 502"):
        answering(face, 502, body, max_retries=0).call("complete", "hi")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ({**ANSWER, "drafts": [{**ANSWER["drafts"][0], "score": -(10**400)}]}, "score is too large"),
        ([], "the body is not an object"),
        ({}, "the body has no id"),
        ({**ANSWER, "id": 5}, "id is not of type str"),
        ({**ANSWER, "drafts": [{}]}, r"drafts\[0\] has no index"),
        ({**ANSWER, "drafts": {}}, "drafts is not a list"),
        ({**ANSWER, "drafts": [{**ANSWER["drafts"][0], "text": None}]}, "text is not of type str"),
        ({**ANSWER, "drafts": [{**ANSWER["drafts"][0], "index": True}]}, "index is not of type int"),
        ({**ANSWER, "usage": None}, "usage is not an object"),
        (None, "not an object"),
    ],
)
def test_answer_of_something_else(face, body, message):
    with pytest.raises(InvalidAnswerError, match=message):
        answering(face, 200, body).call("complete", "hi")


def test_models(face):
    card = {"id": "tiny:sample", "object": "model", "created": 5, "owned_by": "superdraft", "max_model_len": 64}
    client = in_turn(face, httpx.Response(200, json={"object": "list", "data": [card]}))
    assert client.call("models") == (Model("tiny:sample", "superdraft", 5, 64),)
    assert (client.seen[0].method, client.seen[0].url.path, client.seen[0].content) == ("GET", "/v1/models", b"")


@pytest.mark.parametrize(
    ("event", "options", "extra"),
    [
        ("shown", {}, {}),
        ("accepted", {"elapsed_ms": 300.5}, {"elapsed_ms": 300.5}),
        ("dismissed", {"elapsed_ms": 10}, {"elapsed_ms": 10}),
    ],
)
def test_completion_reports_what_was_done_with_it(face, event, options, extra):
    receipt = {"object": "feedback", "completion_id": "x", "event": event, "rank": 2, "counted": True}
    client = in_turn(face, httpx.Response(200, json=ANSWER), httpx.Response(200, json=receipt))
    _, answer = client.complete_and(event, 1, **options)
    assert (answer.rank, answer.counted) == (2, True)
    assert client.seen[1].url.path == "/v1/feedback"
    assert json.loads(client.seen[1].content) == {"completion_id": "drafts-1", "event": event, "index": 1, **extra}


def test_completion_of_nobody_cannot_report():
    with pytest.raises(ClientError, match="has no client"):
        Completion.from_json(ANSWER).shown()


# Faults and retries


def test_nobody_there(face, pauses):
    client = in_turn(face, *[httpx.ConnectError("refused")] * 3)
    with pytest.raises(ConnectionFailedError, match=r"http://server:8000.*superdraft serve"):
        client.call("complete", "hi")
    assert len(client.seen) == 3
    assert 0.15 <= pauses[0] <= 0.2
    assert 0.3 <= pauses[1] <= 0.4


def test_connection_that_breaks_before_the_answer_is_tried_again(face, pauses):
    client = in_turn(face, httpx.RemoteProtocolError("gone"), httpx.Response(200, json=ANSWER))
    assert client.call("complete", "hi").id == "drafts-1"
    broken = httpx.Response(200, stream=Chunks(b"{", httpx.ReadError("reset")))
    with pytest.raises(ConnectionFailedError, match=r"broke before the response was complete \(reset\)"):
        in_turn(face, broken, max_retries=0).call("complete", "hi")


def test_connection_of_an_event_loop_that_has_ended_is_replaced(pauses):
    closed = RuntimeError("Event loop is closed")  # asyncio's own words, in the second of two `asyncio.run`
    face = FACES["async"]
    assert in_turn(face, closed, httpx.Response(200, json=ANSWER)).call("complete", "hi").id == "drafts-1"
    with pytest.raises(ConnectionFailedError, match="event loop that has ended"):
        in_turn(face, closed, max_retries=0).call("complete", "hi")
    with pytest.raises(RuntimeError, match="has been closed"):
        in_turn(face, RuntimeError("the client has been closed")).call("complete", "hi")


def test_too_slow_is_not_tried_again(face, pauses):
    client = in_turn(face, httpx.ReadTimeout("slow"), timeout=2)
    with pytest.raises(RequestTimeoutError, match="2 s"):
        client.call("complete", "hi")
    assert (len(client.seen), pauses) == (1, [])


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (429, {"retry-after-ms": "30", "retry-after": "1"}, [0.03]),
        (503, {"retry-after": "2"}, [2.0]),
        (400, {"x-should-retry": "true", "retry-after-ms": "0"}, [0.0]),
    ],
)
def test_retries_when_the_server_says(face, pauses, status, headers, expected):
    busy = httpx.Response(status, json={"error": ERROR}, headers=headers)
    client = in_turn(face, busy, httpx.Response(200, json=ANSWER))
    assert client.call("complete", "hi").id == "drafts-1"
    assert pauses == expected
    assert client.seen[0].content == client.seen[1].content


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (429, {"x-should-retry": "false", "retry-after-ms": "30"}),
        (500, {"x-should-retry": "false"}),
        (503, {"retry-after": "3600"}),  # longer than anybody waits
        (400, {}),
        (499, {}),
    ],
)
def test_does_not_retry(face, pauses, status, headers):
    client = in_turn(face, httpx.Response(status, json={"error": ERROR}, headers=headers))
    with pytest.raises(StatusError):
        client.call("complete", "hi")
    assert pauses == []


def test_number_of_retries(face, pauses):
    def failing(count):
        return [httpx.Response(500, json={"error": ERROR})] * count

    for options, call_options, attempts in (({}, {}, 3), ({"max_retries": 1}, {}, 2), ({}, {"max_retries": 0}, 1)):
        client = in_turn(face, *failing(attempts), **options)
        with pytest.raises(ServerError):
            client.call("complete", "hi", **call_options)
        assert len(client.seen) == attempts


@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_can_be_passed_to_another_process(face, again):
    with pytest.raises(OverloadedError) as caught:
        answering(face, 429, {"error": ERROR}, {"retry-after-ms": "9000", "x-request-id": "req-1"}).call("models")
    error = again(caught.value)
    assert (type(error), str(error), vars(error)) == (OverloadedError, str(caught.value), vars(caught.value))
    assert (error.status, error.retry_after_s, error.request_id) == (429, 9.0, "req-1")


@pytest.mark.parametrize("url", ["server:8000", "ftp://server", "http://[::1"])
def test_address_that_is_none(face, pauses, url):
    with pytest.raises(InvalidAddressError):
        face(url).call("complete", "hi")
    assert pauses == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "5"])
def test_timeout_must_be_positive(face, timeout):
    with pytest.raises(ValueError):
        face(timeout=timeout)
    with pytest.raises(ValueError):
        in_turn(face).call("complete", "hi", timeout=timeout)


@pytest.mark.parametrize("max_retries", [-1, "2", None])
def test_number_of_retries_must_be_one(face, max_retries):
    with pytest.raises(ValueError, match="max_retries"):
        face(max_retries=max_retries)


@pytest.mark.parametrize("api_key", ["käse", "a\r\nb: c", "key ", " "])
def test_key_must_fit_a_header(face, api_key):
    with pytest.raises(ValueError, match=r"^api_key must be a string of printable ASCII characters without blanks"):
        face(api_key=api_key)


@pytest.mark.parametrize(
    "headers", [{"x-team": "käse"}, {"x-team": "a\nb"}, {"x-team": 1}, {"x team": "a"}, {"ü": "a"}]
)
def test_headers_must_be_valid(face, headers):
    with pytest.raises(ValueError, match="default_headers"):
        face(default_headers=headers)


def test_a_header_replaces_the_keys_whatever_its_case(face):
    client = in_turn(
        face, httpx.Response(200, json=ANSWER), api_key="key", default_headers={"Authorization": "Basic x"}
    )
    client.call("complete", "hi")
    assert client.seen[0].headers.get_list("authorization") == ["Basic x"]


def test_both_clients_offer_the_same():
    from superdraft.client import AsyncSuperdraft

    def public(kind):
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(Superdraft) == public(AsyncSuperdraft)
    answer = AsyncSuperdraft().complete("hi")
    assert asyncio.iscoroutine(answer)
    answer.close()


# Settings of a client


def scripted():
    """Requests that connections with scripted answers have seen, and the connections."""
    seen = []
    http = httpx.Client(transport=httpx.MockTransport(lambda request: (seen.append(request), answer_to(request))[1]))
    return seen, http


def answer_to(request):
    return httpx.Response(200, json=ANSWER)


def test_the_environment_gives_address_and_key(monkeypatch):
    monkeypatch.setenv("SUPERDRAFT_URL", "http://elsewhere:9/v1")
    monkeypatch.setenv("SUPERDRAFT_API_KEY", "secret")
    seen, http = scripted()
    Superdraft(http_client=http).complete("hi")
    assert str(seen[-1].url) == "http://elsewhere:9/v1/drafts"
    assert seen[-1].headers["authorization"] == "Bearer secret"
    Superdraft("http://server:8000", "other", http_client=http).complete("hi")
    assert str(seen[-1].url) == "http://server:8000/v1/drafts"
    assert seen[-1].headers["authorization"] == "Bearer other"
    Superdraft(api_key="", http_client=http).complete("hi")
    assert "authorization" not in seen[-1].headers


def test_without_an_environment_the_server_is_on_this_machine(monkeypatch):
    monkeypatch.delenv("SUPERDRAFT_URL", raising=False)
    with Superdraft() as client:
        assert client.base_url == "http://127.0.0.1:8000"


def test_a_servers_settings_do_not_mind_the_clients_variables(monkeypatch):
    assert set(CLIENT_VARIABLES) == {URL_VARIABLE, API_KEY_VARIABLE}
    monkeypatch.setenv("SUPERDRAFT_URL", "http://elsewhere:9")
    monkeypatch.setenv("SUPERDRAFT_API_KEY", "secret")
    assert load_settings().api_keys is None


def test_options_are_changed_on_a_copy_with_the_same_connections():
    seen, http = scripted()
    client = Superdraft("http://server:8000", "key", default_headers={"x-team": "a"}, http_client=http)
    changed = client.with_options(timeout=2, max_retries=0, api_key="", default_headers={"x-app": "b"})
    changed.complete("hi")
    assert (seen[-1].headers["x-team"], seen[-1].headers["x-app"]) == ("a", "b")
    assert "authorization" not in seen[-1].headers
    assert seen[-1].extensions["timeout"]["read"] == 2
    client.complete("hi")
    assert "x-app" not in seen[-1].headers
    assert seen[-1].headers["authorization"] == "Bearer key"
    assert seen[-1].extensions["timeout"]["read"] == 30
    changed.close()
    client.close()
    assert not http.is_closed  # whoever made it closes it


def test_a_copy_leaves_the_connections_open():
    client = Superdraft("http://server:8000")
    client.with_options(timeout=2).close()
    assert not client._http.is_closed
    client.close()
    assert client._http.is_closed


def test_an_asynchronous_client_takes_the_same_settings():
    async def run():
        seen = []

        async def handle(request):
            seen.append(request)
            return answer_to(request)

        async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as http:
            client = AsyncSuperdraft("http://server:8000", default_headers={"x-team": "a"}, http_client=http)
            await client.with_options(timeout=2, api_key="k").complete("hi")
            await client.close()
            assert not http.is_closed
        assert seen[0].headers["x-team"] == "a"
        assert seen[0].headers["authorization"] == "Bearer k"
        assert seen[0].extensions["timeout"]["read"] == 2

    asyncio.run(run())


def test_answers_become_plain_values_again(face):
    completion = answering(face, 200, ANSWER).call("complete", "hi")
    plain = completion.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["drafts"][0]["tokens"] == [" be"]
    assert type(completion).from_json(plain) == completion
