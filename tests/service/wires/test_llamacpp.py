"""llama.cpp's wire over a fake engine: `/infill` and `/completion`, field by field, and clients that leave."""

import json

import pytest
from support.serving import num_commands, num_twins, raw_request
from support.waiting import eventually

from superdraft.server.wires.editors import cut_dedent

GAP = {"input_prefix": "a\n", "input_suffix": "\nb", "prompt": "x"}


def ask(client, path="/infill", **body):
    response = client.post(path, json={**(GAP if path == "/infill" else {"prompt": "hi"}), "n_predict": 2, **body})
    assert response.status_code == 200, response.text
    return response


def refusal(client, path="/infill", **body):
    response = client.post(path, json={**(GAP if path == "/infill" else {"prompt": "hi"}), **body})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"code", "message", "type"}
    assert (error["code"], error["type"]) == (400, "invalid_request_error")
    return error["message"]


@pytest.mark.parametrize("path", ["/infill", "/completion"])
def test_answer_has_llamacpps_fields(client, path):
    response = ask(client, path)
    assert response.text.startswith(
        '{"index":0,"content":" red0 red1","tokens":[],"id_slot":0,"stop":true,"model":"tiny"'
    )
    answer = response.json()
    num_prompt_tokens = 3 if path == "/infill" else 2
    assert {name: answer[name] for name in ("tokens_predicted", "tokens_evaluated", "tokens_cached", "truncated")} == {
        "tokens_predicted": 2,
        "tokens_evaluated": num_prompt_tokens,
        "tokens_cached": 2,
        "truncated": False,
    }
    assert answer["timings"] == {
        "cache_n": 2,
        "prompt_n": num_prompt_tokens - 2,
        "prompt_ms": 1.0,
        "prompt_per_token_ms": 1.0 if path == "/infill" else 0.0,
        "prompt_per_second": 1000.0 if path == "/infill" else 0.0,
        "predicted_n": 2,
        "predicted_ms": 2.0,
        "predicted_per_token_ms": 1.0,
        "predicted_per_second": 1000.0,
    }


@pytest.mark.parametrize("path", ["/infill", "/completion"])
def test_samplers_that_the_body_sets_are_named_in_a_warning(client, path):
    fields = {"top_k": 40, "samplers": ["infill"], "min_p": None, "cache_prompt": True, "unused": ["x"]}
    warning, *others = ask(client, path, **fields).json()["warnings"]
    assert warning == "These fields have no effect on this server: samplers, top_k."
    assert ask(client, path, cache_prompt=True, temperature=0.5).json()["warnings"] == others


def test_response_fields_are_flat_keys_with_slashes(client):
    wanted = ["timings/predicted_n", "content", "no/such", "timings/no", "stop/too/deep", "truncated"]
    assert (
        ask(client, response_fields=wanted).text == '{"timings/predicted_n":2,"content":" red0 red1","truncated":false}'
    )
    assert ask(client, response_fields=[""]).text == "{}"


def test_several_drafts_are_an_array_best_first(client, engine):
    answers = ask(client, n_cmpl=3).json()
    assert [(answer["index"], answer["content"]) for answer in answers] == [
        (0, " red0 red1"),
        (1, " green0 green1"),
        (2, " blue0 blue1"),
    ]
    engine.max_distinct_drafts = 1
    assert len(ask(client, n_cmpl=3).json()) == 1  # still an array


@pytest.mark.parametrize(
    ("body", "stop_type", "word", "content"),
    [
        ({}, "limit", "", " red0 red1"),
        ({"stop": [" red1", "d1", ""]}, "word", " red1", " red0"),
        ({"stop": "ed"}, "word", "ed", " r"),
        ({"input_suffix": " red1\n"}, "eos", "", " red0"),
    ],
)
def test_stop_types(client, body, stop_type, word, content):
    answer = ask(client, **body).json()
    assert (answer["stop_type"], answer["stopping_word"], answer["content"]) == (stop_type, word, content)


@pytest.mark.parametrize(
    ("n_predict", "max_tokens"), [(-1, 7), (None, 7), (5, 5), (10**15, 7), (0, 0), (-2, 7), (3.0, 3)]
)
def test_number_of_tokens_is_within_the_servers_limit(make_client, engine, n_predict, max_tokens):
    ask(make_client(editor_max_tokens=7), n_predict=n_predict)
    assert engine.seen[0].params.max_tokens == max_tokens


@pytest.mark.parametrize(
    ("body", "timeout_s"),
    [
        ({}, None),
        ({"t_max_predict_ms": 100_000, "t_max_prompt_ms": 50_000}, 100),
        ({"t_max_predict_ms": 25_000}, 25),
        ({"t_max_prompt_ms": 500}, None),
    ],
)
def test_the_time_of_the_drafts_is_limited_but_not_that_of_the_prompt(client, engine, body, timeout_s):
    ask(client, **body)
    assert (engine.seen[0].deadline_s, engine.seen[0].draft_timeout_s) == (None, timeout_s)


@pytest.mark.parametrize("path", ["/infill", "/completion"])
def test_a_request_without_new_tokens_gives_way_and_ends_in_time(client, engine, path):
    assert ask(client, path, n_predict=0).json()["content"] == ""
    ask(client, path, n_predict=1)
    warm_up, request = engine.seen
    assert warm_up.is_warm_up
    assert 0 < warm_up.deadline_s - warm_up.start_s <= 10
    assert (request.is_warm_up, request.deadline_s) == (False, None)


def test_no_draft_in_time_is_an_empty_answer(client, engine):
    engine.max_distinct_drafts = 0
    answer = ask(client, response_fields=["content", "stop_type"])
    assert answer.text == '{"content":"","stop_type":"limit"}'
    assert [one["content"] for one in ask(client, n_cmpl=2).json()] == [""]


def test_prompt_is_context_then_prefix_then_the_typed_line(client, engine):
    ask(client, input_extra=[{"text": "one", "filename": "1.py"}, {"text": "two", "time": 3}])
    assert "".join(map(chr, engine.seen[0].token_ids)) == "one\n\ntwo\n\na\nx"


def test_prompt_that_does_not_fit_loses_its_beginning(client, engine):
    answer = ask(client, input_prefix="0123456789" * 20, prompt="!").json()
    assert answer["truncated"]
    (job,) = engine.seen
    assert len(job.token_ids) <= engine.max_model_len - 2
    assert "".join(map(chr, job.token_ids)).endswith("789!")


def test_completion_takes_token_ids(client, engine):
    ask(client, "/completion", prompt=[104, 105])
    assert engine.seen[0].token_ids == (104, 105)


def test_stream_ends_with_everything_but_the_text(client):
    response = ask(client, "/completion", stream=True, n_cmpl=2)
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.removesuffix("\n\n").split("\n\n")
    events = [json.loads(block.removeprefix("data: ")) for block in blocks]
    assert [(event["index"], event["content"], event["stop"]) for event in events] == [
        (0, " red0 red1", False),
        (0, "", True),
        (1, " green0 green1", False),
        (1, "", True),
    ]
    assert events[1]["stop_type"] == "limit"
    assert events[1]["timings"]["predicted_n"] == 2


def test_samplers_and_unknown_fields_are_let_pass(client):
    ask(
        client,
        samplers=["top_k"],
        top_k=40,
        id_slot=3,
        lora=[{"id": 0}],
        cache_prompt=False,
        model="gpt",
        mirostat=None,
    )


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/infill", {"input_suffix": None}, "input_suffix is missing"),
        ("/infill", {"input_prefix": 3}, "input_prefix"),
        ("/infill", {"input_extra": [{"filename": "a"}]}, "input_extra must be a list of"),
        ("/infill", {"input_extra": {"text": "a"}}, "input_extra must be a list of"),
        ("/infill", {"input_extra": [{"text": "a", "filename": 3}]}, "input_extra must be a list of"),
        (
            "/infill",
            {"input_extra": [{"text": "a"}] * 257},
            "input_extra must have at most 256 texts, got a list of 257.",
        ),
        ("/infill", {"n_cmpl": 0}, "n_cmpl"),
        ("/infill", {"n_cmpl": 33}, "n_cmpl must be at most 32 on this server, got 33."),
        ("/infill", {"n_predict": "5"}, "n_predict must be a number"),
        ("/infill", {"stop": [3]}, "stop must be a string or a list of strings"),
        ("/infill", {"stop": ["a"] * 257}, "stop must have at most 256 strings"),
        ("/infill", {"response_fields": ["a"] * 65}, "response_fields"),
        ("/completion", {"prompt": None}, "prompt is missing"),
        ("/completion", {"prompt": ["a"]}, "prompt must be a string or a list of token ids"),
        ("/completion", {"prompt": "x" * 100}, "does not fit"),
    ],
)
def test_refusals_have_llamacpps_shape(client, path, body, message):
    assert message in refusal(client, path, **body)


def test_failure_of_the_engine_has_llamacpps_shape(client, engine):
    def fail():
        raise RuntimeError("secret")

    engine.on_step = fail
    response = client.post("/infill", json=GAP)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == 500
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/infill", GAP),
        ("/completion", {"prompt": "hi"}),
        ("/v1/fim/completions", {"prompt": "hi", "suffix": "ho"}),
        ("/v1/completions", {"segments": {"prefix": "hi"}}),
    ],
)
def test_client_that_leaves_cancels_its_request(app, url, engine, stepwise, path, body):
    with raw_request(url, path, **body):
        assert eventually(lambda: len(engine.seen) == 1)
    assert eventually(lambda: num_commands(app) == 1)
    stepwise.release(100)
    assert eventually(lambda: engine.cancelled == [engine.seen[0].request_id])
    assert engine.jobs == {}


def test_twin_gets_its_draft_although_the_one_that_came_first_left(app, url, engine, stepwise):
    body = {**GAP, "n_predict": 2}
    with raw_request(url, "/infill", **body) as leaving:
        assert eventually(lambda: len(engine.seen) == 1)
        with raw_request(url, "/infill", **body) as staying:
            assert eventually(lambda: num_twins(app) == 2)
            leaving.close()
            assert eventually(lambda: num_twins(app) == 1)
            stepwise.release(100)
            said = b""
            while b"predicted_per_second" not in said:  # the last field
                said += staying.recv(4096)
    assert b'"content":" red0 red1"' in said
    assert engine.cancelled == []
    assert len(engine.seen) == 1


@pytest.mark.parametrize(
    ("text", "num_columns", "kept"),
    [
        ("a\n    b\n  c\n    d", 4, "a\n    b"),
        ("  a\nb", 2, "  a"),
        ("a\n\n    b\n", 4, "a\n\n    b\n"),
        ("a\n  ", 4, "a\n  "),
        ("a\nb", 0, "a\nb"),
        ("a", 4, "a"),
    ],
)
def test_draft_ends_where_the_indentation_does(text, num_columns, kept):
    assert cut_dedent(text, num_columns) == kept


def test_a_response_field_of_half_a_megabyte_is_refused(client):
    message = refusal(client, path="/completion", response_fields=["/" * 500_000])
    assert message == "response_fields.0 should have at most 128 characters, got a string of 500000 characters."
