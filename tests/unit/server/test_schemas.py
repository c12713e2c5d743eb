"""Pieces of the wire formats that need no server."""

import json
import math

import pytest
from pydantic import ValidationError
from support.engine import FakeEngine

from superdraft.decoding.errors import EngineStoppedError, PromptTooLongError, SupersededError
from superdraft.decoding.outputs import TokenLogprob
from superdraft.server.app import create_app
from superdraft.server.edge.error_map import describe, failure_of
from superdraft.server.settings import Settings
from superdraft.server.wires.common import LOGPROB_FLOOR, bias_pairs, floored
from superdraft.server.wires.llamacpp import InfillRequest
from superdraft.server.wires.native.schemas import DraftsRequest, DraftsResponse
from superdraft.server.wires.openai.mapping import legacy_logprobs
from superdraft.server.wires.openai.schemas import CompletionRequest, CompletionResponse
from superdraft.server.wires.tabby import TabbyRequest


def offsets(text, *tokens):
    return legacy_logprobs(text, [TokenLogprob(0, token, -1.0) for token in tokens]).text_offset


def test_offsets_of_plain_tokens_are_where_they_stand():
    assert offsets("ab abab", "ab", " ab", "ab") == [0, 2, 5]


def test_parts_of_a_character_stand_where_it_starts():
    assert offsets("né🦙 x", "n", "é", "\ufffd", "\ufffd", " x") == [0, 1, 2, 2, 3]


def test_part_with_a_leading_space():
    assert offsets("a 🦙 b", "a", " \ufffd", "\ufffd", "\ufffd", " b") == [0, 1, 1, 1, 3]


def test_special_token_that_has_no_text_takes_no_room():
    assert offsets("ab", "", "a", "b") == [0, 0, 1]


def test_tokens_past_the_cut_are_left_out():
    assert offsets("ab", "ab", "ab") == [0]
    assert offsets("", "ab") == []


def test_alternatives_with_the_same_text_keep_the_likelier():
    token = TokenLogprob(5, "x", -3.0, ((1, "\ufffd", -0.5), (2, "\ufffd", -0.7)))
    assert legacy_logprobs("x", [token]).top_logprobs == [{"\ufffd": -0.5, "x": -3.0}]


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan, -1e12])
def test_floor(value):
    assert floored(value) == LOGPROB_FLOOR


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        pytest.param(10**5000, "a larger integer", id="huge"),
        (0.5, "0.5"),
        (math.inf, "a number that is not finite"),
        (True, "true"),
        (None, "null"),
        ("secret", "a string of 6 characters"),
        (["secret"], "a list of 1"),
        ({"secret": 1}, "an object of 1"),
    ],
)
def test_values_in_messages_quote_no_text(value, text):
    assert describe(value) == text


def test_null_ngram_model_differs_from_an_absent_one():
    assert not DraftsRequest.model_validate({"prompt": "x"}).names_ngram_model
    assert DraftsRequest.model_validate({"prompt": "x", "ngram_model": None}).names_ngram_model


_MANY = 1100


@pytest.mark.parametrize(
    ("schema", "fields"),
    [
        (DraftsRequest, {"prompt": "x", "logit_bias": {str(i): "" for i in range(_MANY)}}),
        (DraftsRequest, {"prompt": "x", **{str(i): 1 for i in range(_MANY)}}),
        (DraftsRequest, {"prompt": [""] * _MANY, "stop": [3] * _MANY}),
        (CompletionRequest, {"prompt": [None] * _MANY, **{str(i): 1 for i in range(_MANY)}}),
        (InfillRequest, {"input_prefix": "", "input_suffix": "", "input_extra": [{"text": ""}] * _MANY}),
        (InfillRequest, {"input_prefix": "", "input_suffix": "", "response_fields": [3] * _MANY}),
        (TabbyRequest, {"segments": {"prefix": "", "declarations": [3] * _MANY}}),
        (TabbyRequest, {"segments": {"prefix": "", "declarations": [3] * 100}}),
        (TabbyRequest, {"segments": {"prefix": "", "declarations": [{"body": ""}] * _MANY}}),
        (TabbyRequest, {"segments": {"prefix": "", **{str(i): 1 for i in range(_MANY)}}}),
    ],
)
def test_a_body_of_nonsense_has_few_errors(schema, fields):
    """Each error costs several microseconds and hundreds of bytes, and a body has room for half a million."""
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(fields)
    assert caught.value.error_count() <= 2


def test_bias_pairs_are_numbers():
    assert bias_pairs({"0": 1.5, "12": -100.0}) == ((0, 1.5), (12, -100.0))


def test_one_table_answers_an_error_with_status_and_headers():
    superseded = failure_of(SupersededError("newer"))
    assert (superseded.status, superseded.headers) == (499, {"x-should-retry": "false"})
    stopped = failure_of(EngineStoppedError("bye"))
    assert stopped.status == 503
    assert stopped.headers == {"x-should-retry": "true", "retry-after-ms": "1000", "retry-after": "1"}
    too_long = failure_of(PromptTooLongError("long"))  # the most special class is not in the table
    assert (too_long.status, too_long.detail.code) == (400, "context_length_exceeded")
    unknown = failure_of(KeyError("secret"))
    assert unknown.status == 500
    assert "secret" not in unknown.detail.message


EXAMPLES = [
    pytest.param(model, example, id=model.__name__)
    for model in (DraftsRequest, DraftsResponse, CompletionRequest, CompletionResponse)
    for example in model.model_config["json_schema_extra"]["examples"]
]


def same_keys(example, value):
    if isinstance(example, dict):
        return set(example) == set(value) and all(same_keys(example[key], value[key]) for key in example)
    if isinstance(example, list):
        return len(example) == len(value) and all(map(same_keys, example, value))
    return True


@pytest.mark.parametrize(("model", "example"), EXAMPLES)
def test_an_example_of_the_api_page_has_the_fields_of_its_schema_and_no_others(model, example):
    dumped = model.model_validate(example).model_dump(exclude_unset=True)
    assert same_keys(example, dumped)


def test_all_examples_of_the_api_page_are_looked_at():
    page = json.dumps(create_app(Settings(), FakeEngine(), model_name="tiny").openapi())
    assert page.count('"examples": ') == len(EXAMPLES)
