"""Legal requests whose fields lie at their edges, two and three at a time, on every wire, streamed and not.

500 requests to a tiny model by default; `SUPERDRAFT_EDGE_REQUESTS` names another number.
"""

import json
import os
import random
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from support.models import tiny_fim_tokenizer, tiny_model
from support.sse import parsed

from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.loading.loader import LoadedModel
from superdraft.server.app import create_app
from superdraft.server.settings import Settings

NUM_REQUESTS = int(os.environ.get("SUPERDRAFT_EDGE_REQUESTS", "500"))
VOCABULARY = 320  # 300 tokens of text, the first of which ends one, six control tokens and rows without a token

TEXTS = (
    *(
        "",
        "a",
        "\r",
        "\r\n",
        "a\rb",
        "\x00",
        "\u200b",
        "e\u0301",
        "\u0301",
        "\ufeff",
        "\ufffd",
        "\u2028",
        "\ud800",
        "\udfff x",
    ),
    *(
        "\U0001f469\u200d\U0001f469",
        "\U0001f469\u200d",
        "x = ",
        "  \n\t",
        "Thank you for the re",
        "def add(a, b):\n    ret",
    ),
    *(
        "<|fim_prefix|>",
        "<|endoftext|>",
        "<|fim_suffix|><|file_sep|>",
        "a<|fim_middle|>",
        "Please find the\n\n\n",
        "the " * 300,
    ),
    *("self.names = \nself.ages = \nself.", ")", "\n)", " the dog", "word " * 60, "\u4f60\u597d", "```", "a\n```\n"),
)
PROMPTS = (
    *TEXTS,
    "Thank you for your email.",
    "The quick brown",
    [],
    [0],
    [65],
    [300],
    [300, 302, 301],
    [299, 310],
    [65] * 200,
)
STRINGS = (" ", "e", "\n", "\r", "\u0301", "\x00", "the", "\ud800", "a" * 2000)
FORBIDS_ALL = {str(token_id): -100 for token_id in range(VOCABULARY)}
INTEGERS = (1, 2, 3, 32, 64, 10**9)

DRAFTING = {
    "model": ("tiny", "superdraft", "tiny:paper", "tiny:sample"),
    "max_tokens": (0, 1, 2, 40, 512),
    "stop": (*STRINGS, [], list(STRINGS), [chr(97 + i % 26) * (1 + i // 26) for i in range(256)]),
    "strategy": ("superposed", "sample", "greedy", "sample+superposed"),
    "selection": ("paper", "distinct"),
    "max_branches": INTEGERS,
    "min_probability": (0, 1e-300, 0.5, 1),
    "elastic": (True, False),
    "temperature": (0, 5e-324, 1e-9, 2),
    "top_p": (1e-6, 1),
    "seed": (-(2**63), 0, 2**63 - 1),
    "logit_bias": ({}, FORBIDS_ALL, {"0": 100}, {"0": -100}, {"300": 100, "310": 100}, {"319": 100}, {"999999": 1}),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "token_healing": (True, False),
    "single_line": (True, False),
    "min_probability_shown": (0, 5e-324, 0.5, 1),
    "suffix": TEXTS,
}
LLAMACPP = {
    "n_predict": (-1, 0, 1, 2, 10**9),
    "n_cmpl": (1, 2, 32),
    "stop": (*STRINGS, "", list(STRINGS)),
    "response_fields": ([], [""], ["content", "timings/prompt_n", "a/b/c"], ["content"] * 64),
    "n_indent": (0, 1, 4, 10**9),
    "t_max_prompt_ms": (0, 1e-9, 1e308),
    "t_max_predict_ms": (0, 1e-9, 1, 1e308),
    "temperature": (-1e308, 0, 1e308),
    "seed": (-(10**18), -1, 2**63 - 1),
    "min_probability_shown": (0, 1),
    "samplers": ([], ["top_k"]),
}
PREFIXES = {"prefix": TEXTS, "suffix": TEXTS, "filepath": (*TEXTS, "a.py")}
# Of each wire its path, its required fields and the others, each with values at its edges.
WIRES = {
    "drafts": (
        "/v1/drafts",
        {"prompt": PROMPTS},
        DRAFTING
        | {
            "path": ("", "a.py", "a" * 1024, "\r"),
            "trigger": ("automatic", "invoked"),
            "num_drafts": INTEGERS,
            "alpha": (0, 5e-324, 1),
            "tau": (0.001, 100),
            "candidates_per_draft": INTEGERS,
            "ngram_model": (None,),
            "min_draft_tokens": INTEGERS,
            "num_branches": INTEGERS,
            "reset_every": INTEGERS,
            "trim": ("none", "word", "sentence"),
            "min_score": (0, -1e-9, -1e308),
            "session_id": ("a", "\u0301" * 128),
            "timeout_ms": (1, 2, 60_000),
        },
    ),
    "completions": (
        "/v1/completions",
        {"prompt": (*PROMPTS, None, ["a", ""], ["a"] * 3, [[65], [300]], [[]])},
        DRAFTING
        | {
            "max_tokens": (0, 1, 2, 10**9),
            "n": INTEGERS,
            "best_of": INTEGERS,
            "top_p": (0, 1),
            "logprobs": (0, 5),
            "echo": (True, False),
            "stream_options": ({}, {"include_usage": True}),
            "special_tokens": (True, False),
            "user": ("", "a" * 256),
        },
    ),
    "infill": (
        "/infill",
        {"input_prefix": TEXTS, "input_suffix": TEXTS},
        LLAMACPP
        | {"prompt": TEXTS, "input_extra": ([], [{"text": "", "filename": "\r"}], [{"text": "the " * 99}] * 9)},
    ),
    "completion": ("/completion", {"prompt": PROMPTS}, LLAMACPP | {"special_tokens": (True, False)}),
    "fim": (
        "/v1/fim/completions",
        {"prompt": TEXTS, "suffix": TEXTS},
        {
            "model": ("tiny", "superdraft:distinct"),
            "max_tokens": (0, 1, 2, 10**9),
            "stop": (*STRINGS, "", list(STRINGS)),
            "temperature": (-1e308, 0, 1e308),
            "random_seed": (-(2**63), 2**64 - 1),
            "seed": (-(2**63), 2**63),
            "min_probability_shown": (0, 1),
        },
    ),
    "tabby": (
        "/v1/completions",
        {"segments": ()},
        {
            "language": ("", "python", "\r"),
            "user": ("", "a" * 256),
            "temperature": (-1e308, 0, 1e308),
            "seed": (-(2**63), 2**64 - 1),
            "min_probability_shown": (0, 1),
            "mode": (None, "standard"),
        },
    ),
}


@pytest.fixture(scope="module")
def client():
    model = tiny_model("llama", vocab_size=VOCABULARY).double()  # so that roundings decide nothing
    loaded = LoadedModel(model, tiny_fim_tokenizer(), "tiny", Path())
    config = EngineConfig(max_model_len=128, num_slots=16, kv_memory_bytes=20_000_000)
    app = create_app(Settings(fan_out=1, editor_max_tokens=6), build_engine(loaded, config), model_name="tiny")
    with TestClient(app, raise_server_exceptions=False) as made:
        yield made


def some_body(choice, wire):
    _, required, others = WIRES[wire]
    body = {name: choice.choice(values) for name, values in required.items() if values}
    if "segments" in required:
        body["segments"] = {name: choice.choice(values) for name, values in PREFIXES.items()}
    chosen = choice.sample(sorted(others), choice.choice((2, 3)))
    return body | {name: choice.choice(others[name]) for name in chosen}


def texts_of(wire, answer):
    """The texts of an answer, for each prompt."""
    match wire:
        case "drafts":
            return [[draft["text"] for draft in answer["drafts"]]]
        case "completions":
            return [[choice["text"] for choice in answer["choices"]]]
        case "fim":
            return [[choice["message"]["content"] for choice in answer["choices"]]]
        case "tabby":
            return [[choice["text"] for choice in answer["choices"]]]
    return [[one.get("content", "") for one in (answer if isinstance(answer, list) else [answer])]]


def streamed_texts(wire, events):
    """The same, put together from the events of a stream."""
    if wire == "drafts":
        *snapshots, answer = events
        first = answer["drafts"][0]["text"] if answer["drafts"] else ""
        for snapshot in snapshots:
            assert first.startswith(snapshot["stable_text"])
            assert all(draft["text"] for draft in snapshot["drafts"])
        return texts_of(wire, answer)
    texts = {}
    for event in events:
        for choice in event["choices"] if wire in ("completions", "fim") else [event]:
            piece = choice["delta"]["content"] if wire == "fim" else choice.get("text", choice.get("content", ""))
            texts[choice.get("index", 0)] = texts.get(choice.get("index", 0), "") + piece
    return [[texts[index] for index in sorted(texts)]]


def error_of(content):
    error = json.loads(content)["error"]
    assert error["message"]
    return re.sub(r"\d+", "#", error["message"])  # where malformed JSON is broken depends on the fields before it


def check(client, wire, body):
    """Send a request without and with `stream`."""
    path = WIRES[wire][0]
    unstreamed = {name: value for name, value in body.items() if name != "stream_options"}
    plain = client.post(path, content=json.dumps(unstreamed).encode())
    assert plain.status_code < 500, plain.text
    assert plain.status_code == 200 or error_of(plain.content)
    has_text = not body.get("response_fields") or "content" in body["response_fields"]
    texts = texts_of(wire, plain.json()) if plain.status_code == 200 and has_text else None
    if wire == "drafts" and texts:
        drafts = plain.json()["drafts"]
        assert all(texts[0]), "a draft without text"
        assert max((token_id for draft in drafts for token_id in draft["token_ids"]), default=0) < 300
        assert [draft["index"] for draft in drafts] == list(range(len(drafts)))
    elif texts and wire != "tabby" and not body.get("echo") and not isinstance(body.get("prompt"), list):
        assert all(texts[0]) or len(texts[0]) == 1, "a draft without text beside others"
    if wire == "tabby":
        return
    streamed = client.post(path, content=json.dumps(body | {"stream": True}).encode())
    assert streamed.status_code < 500, streamed.text
    if streamed.status_code != 200:
        assert streamed.status_code == plain.status_code
        assert error_of(streamed.content) == error_of(plain.content)
        return
    content = streamed.content + (
        b"data: [DONE]\n\n" if wire in ("infill", "completion") else b""
    )  # llama.cpp has none
    events = parsed(content)
    if "error" in events[-1]:
        assert plain.status_code != 200, events[-1]
        assert events[-1]["error"]["message"] == error_of(plain.content)
        return
    # Random drafts differ, and so do those that a clock ends.
    is_random = "sample" in str(body.get("strategy")) + str(body.get("model")) and body.get("seed") is None
    is_random |= body.get("reset_every") is not None and body.get("seed") is None
    is_timed = body.get("timeout_ms", 60_000) < 60_000 or body.get("t_max_predict_ms", 0) not in (0, 1e308)
    found = streamed_texts(wire, events)
    if has_text and not is_random and not is_timed:
        assert found == texts


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        ("drafts", {"prompt": "```", "candidates_per_draft": 2, "min_score": 0, "token_healing": False}),
        ("drafts", {"prompt": "\ufffd", "strategy": "greedy", "min_score": -1e-09}),
        ("completions", {"prompt": [300], "n": 32, "elastic": True, "max_tokens": 10**9}),
    ],
)
def test_what_a_stream_has_called_final_stays(client, wire, body):
    check(client, wire, body)


@pytest.mark.parametrize("wire", WIRES)
def test_legal_requests_at_the_edges_of_their_fields(client, wire):
    num_bodies = NUM_REQUESTS // len(WIRES) // (1 if wire == "tabby" else 2)
    choice, failures = random.Random(wire), []
    for number in range(num_bodies):
        body = some_body(choice, wire)
        try:
            check(client, wire, body)
        except AssertionError as error:
            failures.append(f"{number} {wire} {json.dumps(body)[:600]}\n    {str(error)[:800]}")
    assert not failures, f"{len(failures)} of {num_bodies}\n" + "\n".join(failures[:10])
