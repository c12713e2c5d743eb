"""Bodies that nobody should send, on every POST route: a 4xx in the route's error shape, and the server lives on."""

import json
import resource

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from support.engine import FakeEngine

from superdraft.server.app import create_app
from superdraft.server.settings import Settings

LLAMACPP = {"/infill", "/completion"}
VALID = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/drafts": {"prompt": "hi"},
    "/v1/fim/completions": {"prompt": "hi", "suffix": "x"},
    "/infill": {"input_prefix": "hi", "input_suffix": "x"},
    "/completion": {"prompt": "hi"},
    "/v1/events": {"type": "view", "completion_id": "x", "choice_index": 0},
    "/v1/feedback": {"completion_id": "x", "event": "shown", "index": 0},  # of an unknown completion: 404
}
LARGEST_WRONG_TEXT = 10_000_000


@pytest.fixture(scope="module")
def client():
    with TestClient(create_app(Settings(), FakeEngine(), model_name="tiny")) as made:
        yield made


@pytest.fixture(scope="module")
def routes(client):
    paths = client.get("/openapi.json").json()["paths"]
    found = {path: post for path, operations in paths.items() if (post := operations.get("post")) is not None}
    assert set(VALID) == set(found)  # a new route belongs here, too
    return {
        path: list(post["requestBody"]["content"]["application/json"]["schema"].get("properties", {}))
        for path, post in found.items()
        if "requestBody" in post
    }


def check_error(path, response):
    assert 400 <= response.status_code < 500, response.text[:200]
    error = response.json()["error"]
    if path in LLAMACPP:
        assert error["code"] == response.status_code
        assert {"message", "type"} <= set(error)
    else:
        assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert len(response.content) < 2000


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
WRONG = st.sampled_from(
    [
        None,
        True,
        -1,
        2**31,
        2**63,
        10**400,
        1e308,
        -0.0,
        float("nan"),
        float("inf"),
        "",
        "\ud800",
        "\x00",
        "a" * 100_000,
        [],
        {},
        [[]],
        [None],
        {"": {}},
        [2**63],
        ["\udfff"],
    ]
)

BROKEN = {
    "nothing": b"",
    "half": b'{"prompt": "hi',
    "list": b"[]",
    "text": b'"text"',
    "null": b"null",
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "UTF-16": '{"prompt": "hi"}'.encode("utf-16"),
    "lone surrogate": b'{"prompt": "\\ud800", "input_prefix": "\\ud800", "completion_id": "\\udfff"}',
    "NaN": b'{"prompt": "x", "temperature": NaN, "choice_index": NaN}',
    "deep list": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "long number": b'{"prompt": "x", "max_tokens": ' + b"9" * 100_000 + b"}",
    "10 MB": b'{"prompt": "' + b"a" * LARGEST_WRONG_TEXT + b'"}',
    "form": b"prompt=hi",
}


@pytest.mark.parametrize("path", VALID)
@pytest.mark.parametrize("name", BROKEN)
def test_broken_bodies(client, path, name):
    check_error(path, client.post(path, content=BROKEN[name]))
    assert client.post(path, json=VALID[path]).status_code == (404 if path == "/v1/feedback" else 200)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_wrong_values_of_known_fields(client, routes, data):
    path = data.draw(st.sampled_from(sorted(VALID)))
    fields = data.draw(st.dictionaries(st.sampled_from(routes[path] or ["prompt"]), WRONG | NESTED, max_size=3))
    body = {**VALID[path], **fields}
    response = client.post(path, content=json.dumps(body).encode())
    if response.status_code != 200:
        check_error(path, response)
    assert client.get("/ready").status_code == 200


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(path=st.sampled_from(sorted(VALID)), body=st.binary(max_size=200))
def test_any_bytes(client, path, body):
    response = client.post(path, content=body)
    if response.status_code != 200:
        check_error(path, response)


def test_memory_stays_flat(client):
    def round_of_all():
        for path in VALID:
            for body in BROKEN.values():
                client.post(path, content=body)

    round_of_all()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        round_of_all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 30_000
