"""`POST /v1/completions` over a fake engine."""

import json
import math

import pytest

from superdraft.decoding.outputs import TokenLogprob
from superdraft.server.wires.openai.mapping import legacy_logprobs
from superdraft.server.wires.openai.schemas import CompletionRequest

PATH = "/v1/completions"


def ask(client, **body):
    response = client.post(PATH, json={"prompt": "hi", "max_tokens": 2, **body})
    assert response.status_code == 200, response.text
    return response.json()


def refusal(client, **body):
    response = client.post(PATH, json={"prompt": "hi", "max_tokens": 2, **body})
    assert response.status_code == 400, response.text
    return response.json()["error"]


def test_answer_has_openais_shape(client):
    answer = ask(client, n=3)
    assert answer["id"].startswith("cmpl-")
    assert len(answer["id"]) == len("cmpl-") + 32
    assert answer["object"] == "text_completion"
    assert isinstance(answer["created"], int)
    assert answer["model"] == "tiny"
    assert answer["system_fingerprint"] is None
    assert answer["choices"] == [
        {"index": i, "text": text, "logprobs": None, "finish_reason": "length", "score": -0.5 - i}
        for i, text in enumerate([" red0 red1", " green0 green1", " blue0 blue1"])
    ]
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 6,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
        "forward_rows": 2,
        "limited_by_load": False,
    }
    assert answer["warnings"] == []


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", "", "application/json"])
def test_body_is_json_whatever_the_content_type(client, content_type):
    body = json.dumps({"prompt": "hi", "n": 3}).encode()
    response = client.post(PATH, content=body, headers={"content-type": content_type})
    assert response.status_code == 200
    assert len(response.json()["choices"]) == 3


def test_null_means_the_default(client, engine):
    nulls = dict.fromkeys(set(CompletionRequest.model_fields) - {"prompt"})
    answer = ask(client, **nulls)
    assert len(answer["choices"]) == 1
    assert engine.seen[0].params.max_tokens == 16
    assert answer["warnings"] == []


def test_null_prompt_is_an_empty_one(client, engine):
    ask(client, prompt=None)
    assert engine.seen[0].token_ids == ()


def test_batch_of_prompts_numbers_choices_by_prompt(client):
    answer = ask(client, prompt=["a", "bcd"], n=2, echo=True)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "a red0 red1"),
        (1, "a green0 green1"),
        (2, "bcd red0 red1"),
        (3, "bcd green0 green1"),
    ]
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize(
    ("prompt", "fed"), [([104, 105], [(104, 105)]), ([[104], [105, 106]], [(104,), (105, 106)]), (["a"], [(97,)])]
)
def test_prompts_as_token_ids(client, engine, prompt, fed):
    ask(client, prompt=prompt)
    assert [job.token_ids for job in engine.seen] == fed


@pytest.mark.parametrize("stream", [False, True])
def test_echo_of_token_ids_that_the_model_does_not_have_is_refused(client, stream):
    assert refusal(client, prompt=[999_999_999], echo=True, stream=stream)["param"] == "prompt"


def test_echo_of_token_ids_is_their_text(client):
    assert ask(client, prompt=[104, 105], echo=True)["choices"][0]["text"] == "hi red0 red1"


def test_fewer_distinct_drafts_are_fewer_choices_and_indices_keep_their_meaning(client, engine):
    engine.max_distinct_drafts = 1
    answer = ask(client, prompt=["a", "b"], n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 3]


def test_best_of_decodes_more_drafts_than_it_shows(client, engine):
    answer = ask(client, n=2, best_of=5)
    assert engine.seen[0].params.num_drafts == 5
    assert len(answer["choices"]) == 2
    assert answer["usage"]["completion_tokens"] == 4


def test_stop_is_a_string_or_a_long_list(client, engine):
    answer = ask(client, stop=" red1")
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (" red0", "stop")
    ask(client, stop=[f"</{i}>" for i in range(40)])
    assert len(engine.seen[1].params.stop) == 40


def test_logprobs_in_the_legacy_shape(client, engine):
    choice = ask(client, logprobs=1)["choices"][0]
    assert engine.seen[0].params.verify_top == 1
    assert choice["logprobs"] == {
        "tokens": [" red0", " red1"],
        "token_logprobs": [-1.0, -9999.0],
        "top_logprobs": [{" alt": -0.125, " red0": -1.0}, {" alt": -0.125, " red1": -9999.0}],
        "text_offset": [0, 5],
    }


def test_zero_logprobs_still_gives_the_drafts_own(client):
    logprobs = ask(client, logprobs=0)["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [{" red0": -1.0}, {" red1": -9999.0}]


def test_logprobs_with_echo_start_with_the_prompt(client):
    logprobs = ask(client, logprobs=1, echo=True)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["h", "i", " red0", " red1"]
    assert logprobs["token_logprobs"] == [None, -0.5, -1.0, -9999.0]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == [0, 1, 2, 7]


def test_logprobs_leave_out_tokens_behind_a_stop_string(client):
    logprobs = ask(client, logprobs=0, stop=[" red1"])["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [" red0"]


def test_no_tokens_with_echo_gives_the_prompt(client):
    choice = ask(client, max_tokens=0, echo=True, logprobs=1)["choices"][0]
    assert choice["text"] == "hi"
    assert choice["logprobs"]["tokens"] == ["h", "i"]


def test_sampling_parameters_warn_that_they_have_no_effect(client, engine):
    body = {"prompt": "hi", "temperature": 0.2, "seed": 7, "top_p": 0, "logit_bias": {"5": -1}, "presence_penalty": 1}
    response = client.post(PATH, json=body)
    warnings = response.json()["warnings"]
    assert [warning.split()[0] for warning in warnings] == ["temperature", "top_p", "seed"]
    assert response.headers["x-superdraft-warnings"] == " | ".join(warnings)
    params = engine.seen[0].params
    assert (params.logit_bias, params.presence_penalty) == (((5, -1.0),), 1.0)


def test_strategy_beyond_openai_samples(client, engine):
    fields = {"temperature": 0.2, "seed": 7, "top_p": 0.5, "frequency_penalty": 1}
    assert ask(client, n=3, strategy="sample", **fields)["warnings"] == []
    params = engine.seen[0].params
    assert (params.strategy, params.num_rows) == ("sample", 3)
    assert {name: getattr(params, name) for name in fields} == fields
    assert ask(client, n=2, strategy="greedy")["warnings"] == ["n has no effect with strategy greedy."]


@pytest.mark.parametrize(
    ("fields", "healed"),
    [
        ({}, True),
        ({"token_healing": False}, False),
        ({"prompt": ["a", "b"]}, True),
        ({"prompt": [104]}, False),
        ({"prompt": [[104], [105]]}, False),
        ({"echo": True}, True),
        ({"logprobs": 0}, True),
        ({"logprobs": 1, "echo": True, "token_healing": True}, True),
        ({"prompt": [104], "token_healing": True}, False),
    ],
)
def test_token_healing_is_on_for_text_and_nothing_else_decides(client, engine, fields, healed):
    warnings = ask(client, **fields)["warnings"]
    assert {job.params.token_healing for job in engine.seen} == {healed}
    assert len(warnings) == (1 if fields.get("token_healing") and not healed else 0)


def test_engine_warnings_are_passed_on_once(client, engine):
    engine.warnings = ("The prompt was cut → there.",)
    response = client.post(PATH, json={"prompt": ["a", "b"]})
    assert response.json()["warnings"] == ["The prompt was cut → there."]
    assert response.headers["x-superdraft-warnings"] == "The prompt was cut ? there."


def test_no_draft_at_all_is_one_empty_choice(client, engine):
    engine.max_distinct_drafts = 0
    answer = ask(client, prompt=["a", "b"], n=3, echo=True, logprobs=1)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(0, "a"), (3, "b")]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert answer["usage"]["completion_tokens"] == 0
    response = client.post(PATH, json={"prompt": "hi", "n": 3, "stream": True})
    (chunk, done) = [line for line in response.text.splitlines() if line]
    assert json.loads(chunk.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert done == "data: [DONE]"


def test_one_handler_under_two_paths(client):
    body = {"prompt": "hi", "n": 2, "max_tokens": 2}
    answers = [client.post(path, json=body).json() for path in (PATH, "/completions")]
    assert answers[0]["choices"] == answers[1]["choices"]


def test_segments_without_a_prompt_are_tabbys(client):
    segments = {"prefix": "def add(", "suffix": ")"}
    for body in ({"segments": segments}, {"segments": segments, "prompt": None, "language": "python"}):
        answer = client.post(PATH, json=body).json()
        assert set(answer) == {"id", "choices", "warnings"}
    assert ask(client, segments=segments)["object"] == "text_completion"
    assert client.post(PATH, json={"segments": None}).json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(("body", "headers"), [({}, {}), ({"session_id": "me"}, {}), ({}, {"x-session-id": "me"})])
def test_twins_share_a_run_and_their_choice_has_index_0(client, engine, body, headers):
    """Those of one session, too: they do not take each other's place."""
    client.app.state.service.fan_out._window_s = 60
    client.headers.update(headers)
    texts = [ask(client, **body)["choices"] for _ in range(4)]
    assert [choice["text"].split()[0] for (choice,) in texts] == ["red0", "green0", "blue0", "red0"]
    assert {choice["index"] for (choice,) in texts} == {0}
    assert len(engine.seen) == 1


@pytest.mark.parametrize(
    "fields", [{"seed": 1}, {"n": 2}, {"best_of": 2}, {"prompt": ["hi", "hi"]}, {"strategy": "sample"}, {"logprobs": 1}]
)
def test_other_requests_are_no_twins(client, fields):
    assert ask(client, **fields)["choices"] == ask(client, **fields)["choices"]


def test_unknown_fields_are_accepted(client):
    ask(client, top_k=40, cache_prompt=True, extra={"deep": [1]})


@pytest.mark.parametrize("model", ["tiny", "superdraft"])
def test_served_names(client, model):
    assert ask(client, model=model)["model"] == "tiny"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 33),
        ("n", True),
        ("n", "3"),
        ("n", 1.5),
        ("best_of", 33),
        ("max_tokens", -1),
        ("logprobs", 6),
        ("temperature", 2.5),
        ("temperature", -0.1),
        ("top_p", 1.5),
        ("frequency_penalty", 3),
        ("presence_penalty", -3),
        ("logit_bias", {"5": 200}),
        ("logit_bias", [1]),
        ("logit_bias", {"word": 1}),
        ("strategy", "beam"),
        ("token_healing", "on"),
        ("seed", 2**70),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", {"a": 1}),
        ("prompt", []),
        ("prompt", ["a", 1]),
        ("prompt", [1, -1]),
        ("prompt", [True]),
        ("prompt", [1.0]),
        ("prompt", {"a": 1}),
        ("prompt", 5),
        ("prompt", ["x"] * 33),
        ("suffix", ["end"]),
        ("stream", "yes"),
        ("echo", 1),
        ("stop", ["x"] * 257),
        ("single_line", 1),
        ("user", "x" * 257),
        ("user", 1),
        ("stream_options", {"include_usage": True}),
    ],
)
def test_wrong_values_are_400_and_name_the_field(client, field, value):
    error = refusal(client, **{field: value})
    assert error["param"] == field
    assert error["message"].startswith(field)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", 2.5, "temperature should be less than or equal to 2, got 2.5."),
        ("user", "x" * 257, "user should have at most 256 characters, got a string of 257 characters."),
        ("model", 1, "model should be a valid string, got 1."),
        ("seed", 2**63, "seed should be less than or equal to 9223372036854775807, got a larger integer."),
    ],
)
def test_message_names_limit_and_value(client, field, value, message):
    assert refusal(client, **{field: value})["message"] == message


def test_best_of_below_n(client):
    assert refusal(client, n=3, best_of=2)["param"] == "best_of"


def test_missing_prompt(client):
    error = client.post(PATH, json={"n": 1}).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "missing")


def test_prompt_text_is_never_in_an_error(client):
    secret = "my very secret prompt"
    for body in ({"prompt": [secret, 1]}, {"prompt": secret, "stop": {"a": secret}}, {"prompt": secret * 10}):
        response = client.post(PATH, json=body)
        assert response.status_code == 400
        assert "secret" not in response.text


def test_too_long_prompt_is_a_context_error(client):
    error = refusal(client, prompt="x" * 100)
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")


def test_one_bad_prompt_of_a_batch_cancels_the_others(client, engine):
    refusal(client, prompt=["ok", "x" * 100, "fine"])
    assert ask(client, prompt="again")["choices"]
    assert engine.jobs == {}


def test_unknown_model(client):
    response = client.post(PATH, json={"prompt": "hi", "model": "gpt-4"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert response.json()["error"]["param"] == "model"


def test_answer_is_strict_json(client):
    def refuse(constant):
        raise AssertionError(constant)

    response = client.post(PATH, json={"prompt": "hi", "logprobs": 5, "max_tokens": 4})
    values = json.loads(response.content, parse_constant=refuse)["choices"][0]["logprobs"]["token_logprobs"]
    assert all(math.isfinite(value) for value in values)


def placed(text, *tokens):
    shown = legacy_logprobs(text, [TokenLogprob(0, token, -1.0) for token in tokens])
    return list(zip(shown.tokens, shown.text_offset, strict=True))


def test_named_special_token_takes_no_room_in_the_text():
    assert placed("hi you", "<s>", "hi", " you") == [("<s>", 0), ("hi", 0), (" you", 2)]


def test_sentencepieces_space_before_a_text_is_not_in_it():
    assert placed("hi hi you", "<s>", " hi", " hi", " you") == [("<s>", 0), (" hi", 0), (" hi", 2), (" you", 5)]


def test_token_that_the_cut_went_through_is_the_last():
    assert placed("ab re", "ab", " red", "dish") == [("ab", 0), (" red", 2)]
    assert placed("é", "\ufffd", "\ufffd", "x") == [("\ufffd", 0), ("\ufffd", 0)]


@pytest.mark.parametrize("max_tokens", [513, 10**9, 10**30])
def test_more_tokens_than_the_server_writes_are_fewer_with_a_warning(client, engine, max_tokens):
    body = ask(client, max_tokens=max_tokens)
    limit, most = engine.config.max_tokens, engine.max_model_len // 2
    assert engine.seen[0].params.max_tokens == most < limit
    assert body["warnings"] == [
        f"max_tokens is {max_tokens}, this server allows at most {limit}: drafts end at {most}."
    ]
