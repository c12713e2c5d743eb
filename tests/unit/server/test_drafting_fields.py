"""Fields of requests become engine parameters by their names."""

from dataclasses import fields

import pytest

from superdraft.decoding.params import GenerationParams
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.wires.drafting_fields import DraftingFields
from superdraft.server.wires.native.schemas import DraftsRequest
from superdraft.server.wires.openai.schemas import CompletionRequest

PARAMETERS = {field.name for field in fields(GenerationParams)}
# Fields that are no engine parameters: the wires handle each of them by name.
SHARED = {"model"}
NATIVE = {
    "prompt",
    "path",
    "suffix",
    "trigger",
    "min_probability_shown",
    "ngram_model",
    "session_id",
    "timeout_ms",
    "stream",
}
OPENAI = {
    "prompt",
    "n",
    "best_of",
    "logprobs",
    "echo",
    "suffix",
    "stream",
    "stream_options",
    "user",
    "special_tokens",
    "min_probability_shown",
}

ASKED = {
    "max_tokens": 7,
    "stop": ["."],
    "strategy": "superposed",
    "selection": "distinct",
    "max_branches": 2,
    "min_probability": 0.25,
    "elastic": False,
    "temperature": 0.5,
    "top_p": 0.75,
    "seed": 3,
    "logit_bias": {"5": -1.0},
    "frequency_penalty": 0.5,
    "presence_penalty": 0.25,
    "token_healing": True,
    "single_line": True,
}


def test_a_field_is_an_engine_parameter_or_is_listed_here():
    assert set(DraftingFields.model_fields) - PARAMETERS == SHARED
    assert set(DraftsRequest.model_fields) - PARAMETERS == SHARED | NATIVE
    assert set(CompletionRequest.model_fields) - PARAMETERS == SHARED | OPENAI


@pytest.mark.parametrize("schema", [DraftsRequest, CompletionRequest])
def test_every_shared_field_reaches_the_engine(schema):
    assert set(ASKED) == set(DraftingFields.model_fields) - SHARED
    asked = schema.model_validate({"prompt": "x", **ASKED}).asked(is_text=True, num_drafts=2)
    params = DraftingDefaults().params(asked)
    expected = {**ASKED, "stop": (".",), "logit_bias": ((5, -1.0),)}
    assert {name: getattr(params, name) for name in ASKED} == expected


def test_absent_and_null_fields_are_left_to_the_server():
    for body in ({}, dict.fromkeys(ASKED)):
        asked = DraftsRequest.model_validate({"prompt": "x", **body}).asked(is_text=True)
        for name in ("strategy", "selection", "max_branches", "min_probability", "token_healing"):
            assert getattr(asked, name) is None
    assert DraftsRequest(prompt=[1], token_healing=True).asked(is_text=False).token_healing is False
