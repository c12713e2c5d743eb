"""`POST /v1/drafts` over a fake engine."""

import pytest
from starlette.testclient import TestClient
from support.engine import FakeEngine

from superdraft.decoding.errors import SequenceFailedError
from superdraft.server.app import create_app
from superdraft.server.service import NgramModels
from superdraft.server.settings import Settings

PATH = "/v1/drafts"
SCORER, OTHER = object(), object()


@pytest.fixture
def ngram_client(make_client):
    return make_client(NgramModels({"mail": SCORER, "code": OTHER}, default="mail"))


def refused(client, status=400, **body):
    response = client.post(PATH, json={"prompt": "hi", **body})
    assert response.status_code == status, response.text
    return response.json()["error"]


def test_answer_has_the_documented_shape(client):
    response = client.post(PATH, json={"prompt": "hi", "num_drafts": 2, "max_tokens": 3})
    assert response.status_code == 200
    answer = response.json()
    assert answer.pop("id").startswith("drafts-")
    assert answer["drafts"][0] == {
        "index": 0,
        "text": " red0 red1 red2",
        "tokens": [" red0", " red1", " red2"],
        "token_ids": [0, 1, 2],
        "score": -0.5,
        "token_logprobs": [-0.5, -0.5, -9999.0],
        "finish_reason": "length",
    }
    assert [draft["index"] for draft in answer["drafts"]] == [0, 1]
    del answer["drafts"]
    assert answer == {
        "model": "tiny",
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 6,
            "total_tokens": 8,
            "cached_tokens": 2,
            "forward_rows": 3,
        },
        "timings": {"queue_ms": 0.1, "prefill_ms": 1.0, "decode_ms": 2.0, "ngram_ms": 0.5, "total_ms": 3.1},
        "warnings": [],
    }


def test_parameters_reach_the_engine(client, engine):
    body = {"num_drafts": 4, "max_tokens": 5, "alpha": 0, "tau": 0.5, "candidates_per_draft": 7, "stop": "x"}
    assert client.post(PATH, json={"prompt": [1, 2], **body}).status_code == 200
    params = engine.seen[0].params
    assert engine.seen[0].token_ids == (1, 2)
    assert (params.num_drafts, params.max_tokens, params.alpha, params.tau) == (4, 5, 0, 0.5)
    assert (params.candidates_per_draft, params.stop) == (7, ("x",))


def test_defaults_of_alpha_and_tau_are_the_apps(engine):
    app = create_app(Settings(), engine, model_name="tiny", alpha=0.25, tau=0.75)
    with TestClient(app) as client:
        client.post(PATH, json={"prompt": "hi", "alpha": None})
        client.post("/v1/completions", json={"prompt": "hi"})
    assert [(job.params.alpha, job.params.tau) for job in engine.seen] == [(0.25, 0.75)] * 2


@pytest.mark.parametrize(
    ("choice", "scorer"),
    [
        ({}, SCORER),
        ({"ngram_model": None}, None),
        ({"ngram_model": "code"}, OTHER),
        ({"ngram_model": {"code": 2}}, OTHER),
    ],
)
def test_ngram_model_is_chosen_by_the_request(ngram_client, engine, choice, scorer):
    assert ngram_client.post(PATH, json={"prompt": "hi", **choice}).status_code == 200
    assert engine.seen[0].scorer is scorer


def test_completions_use_the_default_ngram_model(ngram_client, engine):
    ngram_client.post("/v1/completions", json={"prompt": "hi"})
    assert engine.seen[0].scorer is SCORER


def test_ngram_model_that_is_not_loaded(ngram_client):
    error = refused(ngram_client, status=404, ngram_model="law")
    assert (error["param"], error["code"]) == ("ngram_model", "ngram_model_not_found")
    assert "mail, code" in error["message"]


@pytest.mark.parametrize("choice", [{"mail": 1, "code": 1}, {"mail": 0}, {"mail": -1}, {"mail": "1"}, {}, 3, [], True])
def test_wrong_ngram_models(ngram_client, choice):
    assert refused(ngram_client, ngram_model=choice)["param"] == "ngram_model"


def test_unknown_field_is_an_error_that_names_it(client):
    error = refused(client, temperature=1)
    assert (error["param"], error["code"]) == ("temperature", "unknown_field")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_drafts", 0),
        ("num_drafts", 33),
        ("max_tokens", -1),
        ("alpha", 1.1),
        ("alpha", "0.5"),
        ("tau", 0),
        ("candidates_per_draft", 0),
        ("prompt", ["a"]),
        ("prompt", [[1]]),
        ("seed", "x"),
        ("stop", [1]),
    ],
)
def test_wrong_values_name_the_field(client, field, value):
    assert refused(client, **{field: value})["param"] == field


def test_what_has_no_effect_is_said(client, ngram_client):
    warnings = client.post(PATH, json={"prompt": "hi", "seed": 3, "alpha": 0.5}).json()["warnings"]
    assert [warning.split()[0] for warning in warnings] == ["seed", "alpha"]
    assert ngram_client.post(PATH, json={"prompt": "hi", "alpha": 0.5}).json()["warnings"] == []


def test_failed_sequence_is_a_500_in_the_error_shape(client, engine: FakeEngine):
    engine.on_step = lambda: engine.fail.update({name: SequenceFailedError("No numbers.") for name in engine.jobs})
    error = refused(client, status=500)
    assert (error["message"], error["code"]) == ("No numbers.", "sequence_failed")
    engine.on_step = lambda: None
    engine.fail.clear()
    assert client.post(PATH, json={"prompt": "hi"}).status_code == 200
