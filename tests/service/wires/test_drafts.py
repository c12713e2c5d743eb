"""`POST /v1/drafts` over a fake engine."""

import functools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient
from support.engine import FakeEngine
from support.ngram_folders import NamedScorers
from support.serving import num_commands, sessions
from support.waiting import eventually

from superdraft.decoding.errors import SequenceFailedError
from superdraft.server.app import create_app
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.settings import Settings

PATH = "/v1/drafts"
SCORER, OTHER = object(), object()


@pytest.fixture
def ngram_client(make_client):
    return make_client(NamedScorers({"mail": SCORER, "code": OTHER}, default="mail"))


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
        "replaces": None,
        "tokens": [" red0", " red1", " red2"],
        "token_ids": [0, 1, 2],
        "score": -0.5,
        "token_logprobs": [-0.5, -0.5, -9999.0],
        "finish_reason": "length",
    }
    assert [draft["index"] for draft in answer["drafts"]] == [0, 1]
    del answer["drafts"]
    assert answer == {
        "object": "drafts",
        "model": "tiny",
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 6,
            "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 2},
            "cached_tokens": 2,
            "forward_rows": 3,
            "rows_by_depth": [],
            "reused_drafts": 0,
            "limited_by_load": False,
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
    app = create_app(Settings(), engine, model_name="tiny", drafting=DraftingDefaults(alpha=0.25, tau=0.75))
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


@pytest.mark.parametrize("choice", [{"mail": 0}, {"mail": 1001}, {"mail": -1}, {"mail": "1"}, {}, 3, [], True])
def test_wrong_ngram_models(ngram_client, choice):
    assert refused(ngram_client, ngram_model=choice)["param"] == "ngram_model"


def test_unknown_field_is_an_error_that_names_it(client):
    error = refused(client, temprature=1)
    assert (error["param"], error["code"]) == ("temprature", "unknown_field")


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
        ("strategy", "beam"),
        ("strategy", ["sample"]),
        ("num_branches", 0),
        ("num_branches", 2),  # superposed has one branch
        ("temperature", 2.5),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.5),
        ("reset_every", 0),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"5": "1"}),
        ("logit_bias", {"word": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {str(2**31): 1}),
        ("logit_bias", {str(i): 1 for i in range(1025)}),
        ("logit_bias", [[5, 1]]),
        ("frequency_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("token_healing", "yes"),
        ("token_healing", 1),
        ("single_line", 0),
        ("trim", "line"),
        ("min_score", 0.5),
        ("session_id", ""),
        ("session_id", "x" * 129),
        ("session_id", 5),
        ("timeout_ms", 0),
        ("timeout_ms", 1.5),
        ("timeout_ms", 60_001),
        ("stream", "true"),
    ],
)
def test_wrong_values_name_the_field(client, field, value):
    assert refused(client, **{field: value})["param"] == field


def test_every_new_field_reaches_the_engine(client, engine):
    fields = {
        "num_branches": 2,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 11,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "single_line": True,
        "trim": "word",
        "min_score": -2.5,
    }
    body = {"strategy": "sample", "logit_bias": {"5": -100, "0": 1.5}, **fields}
    assert client.post(PATH, json={"prompt": "hi", **body}).json()["warnings"] == []
    params = engine.seen[0].params
    assert {name: getattr(params, name) for name in fields} == fields
    assert (params.strategy, params.logit_bias) == ("sample", ((5, -100.0), (0, 1.5)))
    client.post(PATH, json={"prompt": "hi", "reset_every": 4})
    assert engine.seen[1].params.reset_every == 4


@pytest.mark.parametrize("strategy", ["sample", "greedy", "sample+superposed"])
def test_resets_are_for_superposed_alone(client, strategy):
    assert refused(client, strategy=strategy, reset_every=4)["param"] == "reset_every"


@pytest.mark.parametrize(
    ("prompt", "fields", "healed"),
    [
        ("hi", {}, True),
        ("hi", {"token_healing": False}, False),
        ("hi", {"token_healing": None}, True),
        ([104], {}, False),
        ([104], {"token_healing": True}, False),
    ],
)
def test_token_healing_is_on_for_text(client, engine, prompt, fields, healed):
    warnings = client.post(PATH, json={"prompt": prompt, **fields}).json()["warnings"]
    assert engine.seen[0].params.token_healing is healed
    assert len(warnings) == (1 if fields.get("token_healing") and not healed else 0)


def test_token_healing_off_by_setting(make_client, engine):
    client = make_client(token_healing=False)
    for fields in ({}, {"token_healing": True}):
        client.post(PATH, json={"prompt": "hi", **fields})
    assert [job.params.token_healing for job in engine.seen] == [False, True]


@pytest.mark.parametrize(
    ("fields", "in_vain"),
    [
        ({"alpha": 0.5, "tau": 1, "candidates_per_draft": 4}, []),
        ({"temperature": 0.5, "top_p": 0.5, "seed": 1}, ["temperature", "top_p", "seed"]),
        ({"temperature": 1, "top_p": 1.0}, []),
        ({"seed": 1, "reset_every": 3}, []),
        (
            {"strategy": "sample", "alpha": 0.5, "tau": 1, "candidates_per_draft": 4, "ngram_model": "mail"},
            ["alpha", "tau", "candidates_per_draft", "ngram_model"],
        ),
        ({"strategy": "sample", "alpha": 0, "ngram_model": None, "seed": 1, "temperature": 0.5}, []),
        ({"strategy": "sample+superposed", "alpha": 0.5, "tau": 1, "temperature": 0.5, "seed": 1}, []),
        (
            {"strategy": "greedy", "alpha": 0.5, "temperature": 0.5, "seed": 1, "num_drafts": 3},
            ["num_drafts", "alpha", "temperature", "seed"],
        ),
        ({"strategy": "greedy", "num_drafts": 1, "logit_bias": {"5": 1}, "frequency_penalty": 1}, []),
    ],
)
def test_what_has_no_effect_is_said(ngram_client, fields, in_vain):
    warnings = ngram_client.post(PATH, json={"prompt": "hi", **fields}).json()["warnings"]
    assert [warning.split()[0] for warning in warnings] == in_vain


def test_alpha_without_an_ngram_model_is_said(client):
    for alpha, count in ((0.5, 1), (0, 0)):
        assert len(client.post(PATH, json={"prompt": "hi", "alpha": alpha}).json()["warnings"]) == count


@pytest.mark.parametrize(
    ("body", "header", "session_id"),
    [
        ({}, None, None),
        ({"session_id": "a" * 128}, None, "a" * 128),
        ({}, "from header", "from header"),
        ({"session_id": "body"}, "header", "body"),
        ({"session_id": None}, "header", "header"),
    ],
)
def test_session_from_body_or_header(client, engine, body, header, session_id):
    headers = {} if header is None else {"x-session-id": header}
    assert client.post(PATH, json={"prompt": "hi", **body}, headers=headers).status_code == 200
    assert {name for _, name in sessions(client.app)} == {session_id or ""}


@pytest.mark.parametrize("header", ["", "x" * 129])
def test_wrong_session_header(client, header):
    response = client.post(PATH, json={"prompt": "hi"}, headers={"x-session-id": header})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "session_id"


def test_newer_request_of_a_session_ends_the_older_with_499(client, engine):
    engine.gate = threading.Event()
    with ThreadPoolExecutor() as pool:
        ask = functools.partial(client.post, PATH, json={"prompt": "hi", "session_id": "me"})
        older = pool.submit(ask)
        assert eventually(lambda: len(engine.seen) == 1)
        other = pool.submit(client.post, PATH, json={"prompt": "hi", "session_id": "you"})
        newer = pool.submit(ask)
        assert eventually(lambda: num_commands(client.app) == 2)  # the engine hangs in a step of the older
        engine.gate.set()
        assert (older.result().status_code, newer.result().status_code) == (499, 200)
        assert other.result().status_code == 200
    assert older.result().headers["x-should-retry"] == "false"
    assert older.result().json()["error"]["code"] == "superseded"


def test_time_over_is_an_answer_with_a_warning(client, engine):
    engine.on_step = lambda: time.sleep(0.02)
    response = client.post(PATH, json={"prompt": "hi", "max_tokens": 50, "timeout_ms": 70})
    assert response.status_code == 200
    assert response.json()["warnings"] == ["The time limit was reached."]
    assert 1 <= len(response.json()["drafts"][0]["tokens"]) < 10


def test_timeouts_are_limited(client, engine):
    assert "60000" in refused(client, timeout_ms=60_001)["message"]
    assert client.post(PATH, json={"prompt": "hi", "timeout_ms": 60_000}).status_code == 200
    assert 0 < engine.seen[0].deadline_s - time.monotonic() <= 60


def test_failed_sequence_is_a_500_in_the_error_shape(client, engine: FakeEngine):
    engine.on_step = lambda: engine.fail.update({name: SequenceFailedError("No numbers.") for name in engine.jobs})
    error = refused(client, status=500)
    assert (error["message"], error["code"]) == ("No numbers.", "sequence_failed")
    engine.on_step = lambda: None
    engine.fail.clear()
    assert client.post(PATH, json={"prompt": "hi"}).status_code == 200


def test_the_tuned_number_of_candidates_is_for_requests_that_do_not_say(engine):
    app = create_app(Settings(), engine, model_name="tiny", drafting=DraftingDefaults(candidates_per_draft=7))
    with TestClient(app) as client:
        for fields in ({"num_drafts": 3}, {"num_drafts": 4}, {"num_drafts": 3, "candidates_per_draft": 5}):
            assert client.post("/v1/drafts", json={"prompt": "hi", **fields}).status_code == 200
    # 4 drafts need 8 in the first step: they get the engine's default.
    assert [seen.params.candidates_per_draft for seen in engine.seen] == [7, None, 5]
