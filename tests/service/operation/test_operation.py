"""Health, readiness, the list of models, the API's own description, the log."""

import logging

import pytest
from starlette.testclient import TestClient
from support.engine import FakeEngine
from support.waiting import eventually

from superdraft.decoding.params import SELECTIONS
from superdraft.server.app import create_app
from superdraft.server.observe.log_config import configure_logging
from superdraft.server.settings import Settings


def test_health_and_readiness(engine):
    app = create_app(Settings(), engine, model_name="tiny")
    before = TestClient(app)  # the lifespan has not begun
    assert before.get("/health").status_code == 200
    assert before.get("/ready").status_code == 503
    assert before.post("/v1/drafts", json={"prompt": "hi"}).status_code == 503
    with TestClient(app) as client:
        assert client.get("/ready").json() == {"status": "ready", "model": "tiny"}
    assert before.get("/ready").status_code == 503
    assert before.post("/v1/drafts", json={"prompt": "hi"}).json()["error"]["code"] == "shutting_down"


def test_an_engine_that_keeps_failing_is_neither_ready_nor_alive(client, engine):
    def crash():
        raise RuntimeError("broken")

    engine.on_step = crash
    for _ in range(3):
        assert client.get("/ready").status_code == 200
        assert client.get("/health").json() == {"status": "ok"}
        assert client.post("/v1/drafts", json={"prompt": "hi"}).status_code == 500
    assert client.get("/ready").status_code == 503
    assert eventually(lambda: client.get("/health").status_code == 503)
    assert client.get("/health").json() == {"status": "failed"}
    refused = client.post("/v1/drafts", json={"prompt": "hi"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")


def test_a_stopped_server_has_not_failed(engine):
    app = create_app(Settings(), engine, model_name="tiny")
    with TestClient(app):
        pass
    assert TestClient(app).get("/health").status_code == 200


def test_models_are_the_name_and_the_alias(client):
    listing = client.get("/v1/models").json()
    assert listing["object"] == "list"
    names = [card["id"] for card in listing["data"]]
    methods = ("superposed", "sample", "greedy", "sample+superposed", *SELECTIONS)
    assert "paper" in methods
    assert names[:2] == ["tiny", "superdraft"]
    assert names[2:] == [f"{name}:{method}" for name in names[:2] for method in methods]
    card = client.get("/v1/models/tiny").json()
    assert card == listing["data"][0]
    assert (card["object"], card["max_model_len"]) == ("model", 64)
    assert client.get("/v1/models/gpt-4").json()["error"]["code"] == "model_not_found"


def test_served_name_may_hold_a_slash(make_client):
    client = make_client(served_model_name="org/model")
    assert client.get("/v1/models/org/model").json()["id"] == "org/model"
    assert client.post("/v1/completions", json={"prompt": "x", "model": "org/model"}).json()["model"] == "org/model"
    assert client.post("/v1/completions", json={"prompt": "x", "model": "tiny"}).status_code == 404


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/drafts"])
def test_documented_examples_are_valid_requests_and_answers(client, path):
    operation = client.get("/openapi.json").json()["paths"][path]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "max_tokens", "stop"} <= set(schema["properties"])
    (request,) = schema["examples"]
    answer = client.post(path, json=request)
    assert answer.status_code == 200
    reference = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    (example,) = client.get("/openapi.json").json()["components"]["schemas"][reference]["examples"]
    assert set(answer.json()) - set(example) <= {"system_fingerprint"}  # null: the documentation leaves it out
    assert client.get("/docs").status_code == 200


def test_log_line_names_the_request_but_not_the_prompt(capsys):
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    configure_logging("debug", "json")
    try:
        with TestClient(create_app(Settings(), FakeEngine(), model_name="tiny")) as client:
            client.post("/v1/drafts", json={"prompt": "my secret"}, headers={"x-request-id": "abc"})
            client.post("/v1/drafts", json={"prompt": ["my secret"]})
    finally:
        root.handlers, root.level = handlers, level
    log = capsys.readouterr().err
    assert '"request_id": "abc"' in log
    assert '"route": "/v1/drafts"' in log
    assert '"status": 200' in log
    assert '"status": 400' in log
    assert "secret" not in log
