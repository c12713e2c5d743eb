"""What the Python and the TypeScript client know of an answer is what the server sends."""

import re
from dataclasses import fields

import pytest
from support.typescript import SOURCES

from superdraft.client import models
from superdraft.server.wires import feedback, operators
from superdraft.server.wires.native import schemas as native
from superdraft.server.wires.openai import schemas as openai

TYPESCRIPT = (SOURCES / "src" / "models.ts").read_text(encoding="utf-8")
LEFT_OUT = {
    "prompt_tokens_details",  # for OpenAI's clients: `cached_tokens` stands beside it
    "completion_id",  # of a receipt: what the client has sent
    "event",
}
KIND = {"object"}  # the Python classes tell kinds apart themselves

# The server's model, the client's name of it, and whether the Python client has it.
ANSWERS = [
    (native.Replaces, "Replaces", True),
    (native.Draft, "Draft", True),
    (native.DraftsUsage, "Usage", True),
    (native.DraftsTimings, "Timings", True),
    (native.DraftsResponse, "DraftsAnswer", True),
    (native.SnapshotDraft, "SnapshotDraft", True),
    (native.DraftsSnapshot, "Snapshot", True),
    (feedback.FeedbackResponse, "FeedbackReceipt", True),
    (openai.ModelCard, "Model", True),
    (operators.NgramModelCard, "NgramModel", False),
    (operators.Limits, "Limits", False),
]


def typescript_fields(name: str) -> set[str]:
    body = TYPESCRIPT.partition(f"export interface {name} {{")[2].partition("\n}")[0]
    return set(re.findall(r"^  (\w+)\??:", body, re.MULTILINE))


@pytest.mark.parametrize(("sent", "name", "in_python"), ANSWERS, ids=[name for _, name, _ in ANSWERS])
def test_the_fields_of_an_answer_are_the_same_in_the_server_and_both_clients(sent, name, in_python):
    wanted = set(sent.model_fields) - LEFT_OUT
    assert typescript_fields(name) - KIND == wanted - KIND
    if in_python:
        assert {field.name for field in fields(getattr(models, name))} == wanted - KIND


def test_every_interface_of_an_answer_is_compared():
    interfaces = set(re.findall(r"export interface (\w+) ", TYPESCRIPT))
    assert interfaces == {name for _, name, _ in ANSWERS} | {"DraftsOptions"}
