"""Every failure is in OpenAI's error shape, and the server lives on."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from superdraft.server.wires.native.schemas import DraftsRequest
from superdraft.server.wires.openai.schemas import CompletionRequest

PATHS = ("/v1/completions", "/v1/drafts")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = sorted({*CompletionRequest.model_fields, *DraftsRequest.model_fields})


def check_error(response, *statuses):
    assert response.status_code in statuses, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert response.headers["content-type"] == "application/json"
    return error


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "alpha": NaN, "temperature": NaN}',
        b'{"prompt": "x", "alpha": 1e999, "temperature": 1e999}',
        b'{"prompt": "x", "alpha": Infinity, "temperature": Infinity}',
        b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"prompt": "x", "max_tokens": ' + b"9" * 6000 + b"}",
        b"prompt=x",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_broken_bodies(client, path, body):
    check_error(client.post(path, content=body), 400)


REQUIRED = {
    "/v1/completions": {"prompt": "x"},
    "/v1/drafts": {"prompt": "x"},
    "/v1/fim/completions": {"prompt": "x"},
    "/infill": {"input_prefix": "x", "input_suffix": ""},
    "/v1/feedback": {"completion_id": "x", "event": "shown"},
    "/v1/events": {"completion_id": "x", "type": "view"},
}


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize(
    ("path", "field"),
    [
        *((path, field) for path in PATHS for field in FIELDS if field != "prompt"),
        ("/infill", "n_cmpl"),
        ("/infill", "n_predict"),
        ("/infill", "t_max_predict_ms"),
        ("/v1/fim/completions", "max_tokens"),
        ("/v1/feedback", "index"),
        ("/v1/events", "choice_index"),
    ],
)
def test_errors_do_not_repeat_long_numbers(client, path, field, sign):
    body = f'{json.dumps(REQUIRED[path])[:-1]}, "{field}": {sign}{"9" * 4000}}}'
    answer = client.post(path, content=body)
    assert answer.status_code in (200, 400, 404)
    assert "9" * 41 not in answer.text


@pytest.mark.parametrize("path", PATHS)
def test_body_too_large(make_client, path):
    client = make_client(max_body_bytes=100)
    body = json.dumps({"prompt": "x" * 100}).encode()
    assert check_error(client.post(path, content=body), 413)["code"] == "body_too_large"
    pieces = iter([body[:60], body[60:]])
    check_error(client.post(path, content=pieces), 413)  # no content-length
    assert client.post(path, json={"prompt": "x"}).status_code == 200


@pytest.mark.parametrize("length", ["9" * 5000, "x", "-1", "²"])
def test_strange_content_length(client, length):
    headers = [(b"content-length", length.encode("latin-1", "replace"))]
    response = client.post("/v1/drafts", content=iter([b'{"prompt": "x"}']), headers=headers)
    assert response.status_code in (200, 413)


def test_unknown_route_and_method(client):
    assert check_error(client.get("/v1/nothing"), 404)["code"] == "route_not_found"
    response = client.get("/v1/completions")
    check_error(response, 405)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/drafts/"), ("GET", "/health/"), ("GET", "/docs/")])
def test_trailing_slash_is_another_path(client, method, path):
    answer = client.request(method, path, headers={"host": "elsewhere"}, follow_redirects=False)
    assert check_error(answer, 404)["code"] == "route_not_found"
    assert "location" not in answer.headers


def test_unexpected_exception_is_a_500_that_tells_nothing(client, monkeypatch):
    def broken(*args):
        raise KeyError("the secret prompt")

    monkeypatch.setattr("superdraft.server.wires.native.routes.drafts_response", broken)
    response = client.post("/v1/drafts", json={"prompt": "hi"}, headers={"x-request-id": "abc"})
    assert check_error(response, 500)["code"] == "internal_error"
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert response.headers["x-request-id"] == "abc"


def test_engine_crash_is_a_500_and_the_next_request_works(client, engine):
    def crash():
        raise RuntimeError("CUDA error")

    engine.on_step = crash
    check_error(client.post("/v1/drafts", json={"prompt": "hi"}), 500)
    engine.on_step = lambda: None
    assert client.post("/v1/drafts", json={"prompt": "hi"}).status_code == 200


@pytest.mark.parametrize(
    ("given_id", "kept"), [("abc-123", True), ("", False), ("a" * 129, False), ("a b", False), ("<script>", False)]
)
def test_request_id_is_kept_if_it_is_sane(client, given_id, kept):
    for path in ("/health", "/nothing"):
        answered = client.get(path, headers={"x-request-id": given_id}).headers["x-request-id"]
        assert (answered == given_id) is kept
        assert answered


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()), path=st.sampled_from(PATHS))
def test_any_bytes_never_hurt(client, body, path):
    response = client.post(path, content=body)
    if not _may_be_valid(body):
        check_error(response, 400)
    assert response.status_code < 500
    assert client.get("/health").status_code == 200


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5), path=st.sampled_from(PATHS))
def test_any_fields_never_hurt(client, fields, path):
    response = client.post(path, content=json.dumps({"prompt": "hi", **fields}).encode())
    if response.status_code != 200:
        check_error(response, 400, 404)
    assert client.get("/ready").status_code == 200


def _may_be_valid(body):
    try:
        return "prompt" in json.loads(body)
    except (ValueError, TypeError, RecursionError):
        return False
