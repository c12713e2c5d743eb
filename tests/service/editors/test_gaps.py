"""A text with a gap on the five wires that take one, for models with tokens for gaps and for models without."""

import json
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from starlette.testclient import TestClient
from support.engine import FakeEngine, FakeTokenizer
from support.models import CODESTRAL_FIM, QWEN_FIM, tiny_fim_tokenizer, tiny_model, tiny_tokenizer
from support.serving import metrics_of, raw_request, serving
from support.sse import parsed
from support.waiting import eventually

from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.admission import prompt_token_ids
from superdraft.decoding.loading.loader import LoadedModel
from superdraft.decoding.prompt import PrefixedText
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.server.app import create_app
from superdraft.server.settings import Settings
from superdraft.server.wires.editors import NOT_SEEN


class GapTokenizer(FakeTokenizer):
    """One token a character, and tokens for gaps."""

    vocabulary: ClassVar = {**FakeTokenizer.vocabulary, **{name: 1000 + i for i, name in enumerate(QWEN_FIM[:3])}}

    def decode(self, token_ids):
        return super().decode(i for i in token_ids if i < 1000)


@dataclass
class ScriptedEngine(FakeEngine):
    """A fake engine whose drafts have these texts."""

    texts: tuple[str, ...] = ()

    def _draft(self, index, job):
        return replace(super()._draft(index, job), text=self.texts[index])

    def generate_with(self, *texts):
        self.texts, self.max_distinct_drafts = texts, len(texts)


@dataclass
class Wire:
    """A route that fills gaps: the body for a gap, and how its answer is read."""

    path: str

    def body(self, prefix, suffix):
        return {
            "/infill": {"input_prefix": prefix, "input_suffix": suffix},
            "/v1/fim/completions": {"prompt": prefix, "suffix": suffix},
            "/v1/completions": {"prompt": prefix, "suffix": suffix},
            "/v1/drafts": {"prompt": prefix, "suffix": suffix},
            "tabby": {"segments": {"prefix": prefix, "suffix": suffix}},
        }[self.path]

    def post(self, client, prefix, suffix, **fields):
        path = "/v1/completions" if self.path == "tabby" else self.path
        return client.post(path, json={**self.body(prefix, suffix), **fields})

    def ask(self, client, prefix, suffix, **fields):
        response = self.post(client, prefix, suffix, **fields)
        assert response.status_code == 200, response.text
        answer = response.json()
        if self.path == "/v1/drafts":
            return answer["drafts"][0]["text"], answer["warnings"]
        choice = answer if self.path == "/infill" else answer["choices"][0]
        texts = {"/infill": lambda: choice["content"], "/v1/fim/completions": lambda: choice["message"]["content"]}
        return texts.get(self.path, lambda: choice["text"])(), answer["warnings"]


WIRES = [Wire(path) for path in ("/infill", "/v1/fim/completions", "/v1/completions", "tabby")]
NATIVE = Wire("/v1/drafts")
every_wire = pytest.mark.parametrize("wire", [*WIRES, NATIVE], ids=lambda wire: wire.path)
sharing_wires = pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.path)


@pytest.fixture(params=["tokens for gaps", "no such tokens"])
def engine(request):
    tokenizer = GapTokenizer() if request.param == "tokens for gaps" else FakeTokenizer()
    return ScriptedEngine(tokenizer=tokenizer, config=EngineConfig(max_num_drafts=8), max_model_len=200)


def fills(engine):
    return isinstance(engine.tokenizer, GapTokenizer)


@every_wire
@pytest.mark.parametrize(
    ("prefix", "draft", "suffix", "shown"),
    [
        ("f(", "foo)\nbar", ")\nbaz", "foo"),
        ("f(", "g(x) + y", ")\n", "g(x) + y"),
        ("def f():\n    ", "x = 1\n    return x\n", "\n\n    return x\n", "x = 1"),
        ("def f():\n\t", "x = 1\n\treturn x\n", "\n\treturn x\n", "x = 1"),
        ("x = ", "1\ny = 2", " + 1\n", "1"),
        ("x\r\n", "a\r\nb\r\nc", "\r\nb\r\n", "a"),
        ("x\r\n", "a\nb", "\r\n", "a\r\nb"),
        ("x\n", "a\r\nb", "\n", "a\nb"),
        ("\t", "a\n\tb", "\n", "a\n\tb"),
        ("f(", "a)", "", "a)"),
        ("def f(a):\n    ", "return a\n```\n\nIn this solution", "\n\n\nf(1)\n", "return a"),
        ("def f(a):\r\n    ", "return a\r\n    ```\r\n", "\r\n\r\n\r\nf(1)\r\n", "return a"),
        ("# Use\n\n", "Run it:\n\n```sh\nmake", "\n\n# Test\n", "Run it:\n\n```sh\nmake"),
        ("# Use\n\n```sh\n", "make\n```\n\nx", "\n# Test\n", "make\n```\n\nx"),
    ],
)
def test_draft_keeps_out_of_the_text_after_the_gap(make_client, engine, wire, prefix, draft, suffix, shown):
    engine.generate_with(draft)
    text, warnings = wire.ask(make_client(), prefix, suffix)
    assert text == shown
    assert warnings == ([] if fills(engine) or not suffix else [NOT_SEEN])
    is_framed = fills(engine) and (suffix or wire.path not in ("/v1/completions", "/v1/drafts"))
    ids = engine.seen[0].token_ids
    assert [i for i in ids if i >= 1000] == ([1000, 1001, 1002] if is_framed else [])
    assert ("".join(map(chr, ids)) == prefix) == (not is_framed)


@every_wire
def test_text_that_does_not_fit_is_said_to_be_cut(make_client, engine, wire):
    engine.generate_with("a")
    text, warnings = wire.ask(make_client(prompt_too_long="truncate_left"), "word " * 100, "!\n")
    assert text == "a"
    assert warnings[-1] == "prompt and suffix are too long together with max_tokens: their far ends were left out."
    assert len(engine.seen[0].token_ids) <= 200


@pytest.mark.parametrize(
    ("path", "body", "read"),
    [
        ("/infill", {"n_cmpl": 3}, lambda answer: [one["content"] for one in answer]),
        ("/v1/drafts", {"num_drafts": 3}, lambda answer: [one["text"] for one in answer["drafts"]]),
        ("/v1/completions", {"n": 3}, lambda answer: [one["text"] for one in answer["choices"]]),
        ("/v1/completions", {"n": 2, "best_of": 3}, lambda answer: [one["text"] for one in answer["choices"]]),
    ],
)
def test_drafts_that_are_equal_after_the_cut_count_once(make_client, engine, path, body, read):
    engine.generate_with("a)", "a)\nb", "c")
    response = Wire(path).post(make_client(), "f(", ")\n", **body)
    assert read(response.json()) == ["a", "c"]


@pytest.mark.parametrize(
    ("drafts", "shown"),
    [
        (("\n\ndef g():", "\ndef g():", "\n    b"), ["\n\ndef g():", "\n    b"]),  # they differ in blank lines only
        (("a", "a ", "c"), ["a", "c"]),
        ((" )", "c"), ["c"]),  # before the closing bracket, a blank is left
    ],
)
def test_drafts_that_read_the_same_count_once(make_client, engine, drafts, shown):
    engine.generate_with(*drafts)
    answer = Wire("/v1/drafts").post(make_client(), "f(", ")\n", num_drafts=3).json()
    assert [draft["text"] for draft in answer["drafts"]] == shown


@pytest.mark.parametrize(
    ("prompt", "suffix", "texts", "told_apart", "is_single"),
    [
        ("f(", ")\nx", ("a\nb", "c\nd"), ["a\nb", "c\nd"], True),  # llama.vscode shows the first line
        ("f(", "\nx", ("a\nb", "a\nc"), ["a\nb", "a\nc"], False),
        ("", "\nx", ("    a", "a", "  a", "     a"), ["    a", "     a"], False),  # it removes the indent of 4
        ("f(", "\nx", ("a", "a\n", "a\n\n"), ["a"], False),  # it removes line breaks at the end
    ],
)
def test_alternatives_differ_in_what_llama_vscode_shows(
    make_client, engine, prompt, suffix, texts, told_apart, is_single
):
    engine.generate_with(*texts)
    body = {"input_prefix": "def f():\n", "prompt": prompt, "input_suffix": suffix, "n_cmpl": 4}
    answers = make_client().post("/infill", json={**body, "n_indent": 0 if prompt else 4}).json()
    assert [answer["content"] for answer in answers] == told_apart
    assert engine.seen[0].params.single_line == is_single


@sharing_wires
def test_twins_share_what_is_left_after_the_cut(make_client, engine, wire):
    engine.generate_with("a)", "a)\nb", "c")
    client = make_client()
    assert [wire.ask(client, "f(", ")\n")[0] for _ in range(3)] == ["a", "c", "a"]
    assert len(engine.seen) == 1


@pytest.mark.parametrize(("seed", "n"), [(None, 1), (1, 1), (1, 2)])
def test_stream_of_a_gap_has_the_same_text_whole(make_client, engine, seed, n):
    engine.generate_with("a\nb)", "c")
    client = make_client()
    body = {"prompt": "f(\r\n", "suffix": ")\n", "seed": seed, "n": n}
    events = parsed(client.post("/v1/completions", json={**body, "stream": True}).content)
    choices = [event["choices"][0] for event in events]
    assert [(one["index"], one["text"], one["finish_reason"]) for one in choices] == [
        (0, "a\r\nb", "stop"),
        (1, "c", "length"),
    ][:n]
    assert (NOT_SEEN in events[-1]["warnings"]) == (not fills(engine))


def test_native_stream_of_a_gap_ends_with_its_drafts(make_client, engine):
    engine.generate_with("a\nb)", "c")
    body = {"prompt": "f(\r\n", "suffix": ")\n", "num_drafts": 2, "stream": True}
    event = parsed(make_client().post("/v1/drafts", json=body).content)[-1]
    assert event["object"] == "drafts"
    assert [draft["text"] for draft in event["drafts"]] == ["a\r\nb", "c"]
    assert (NOT_SEEN in event["warnings"]) == (not fills(engine))


@pytest.mark.parametrize(("suffix", "is_single"), [(" + 1\n", True), (")\n", False), ("\nx", False)])
def test_inside_a_line_drafts_have_one_line(make_client, engine, suffix, is_single):
    engine.generate_with("a")
    make_client().post("/v1/drafts", json={"prompt": "f(", "suffix": suffix})
    assert engine.seen[0].params.single_line == is_single


def test_log_probabilities_keep_the_drafts_own_line_ends(make_client, engine):
    engine.generate_with("a\nb")
    client = make_client()
    body = {"prompt": "x\r\n", "suffix": "\r\n"}
    texts = [client.post("/v1/completions", json={**body, **more}).json() for more in ({}, {"logprobs": 1})]
    assert [(answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) for answer in texts] == [
        ("a\r\nb", "length"),
        ("a\nb", "length"),
    ]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"echo": True, "logprobs": 1}, "suffix"),
        ("/v1/completions", {"prompt": [5, 6]}, "prompt"),
        ("/v1/drafts", {"prompt": [5, 6]}, "prompt"),
        ("/v1/drafts", {"prompt": [5, 6], "suffix": "", "path": "a.py"}, "prompt"),
    ],
)
def test_fields_that_do_not_go_with_a_suffix(make_client, engine, path, fields, param):
    response = make_client().post(path, json={"prompt": "a", "suffix": "b", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_infill_says_so_only_if_the_field_is_asked_for(make_client, engine):
    engine.generate_with("a")
    body = {"input_prefix": "x", "input_suffix": "y", "response_fields": ["content"]}
    assert make_client().post("/infill", json=body).text == '{"content":"a"}'


def test_fim_stream_says_so_at_its_end(make_client, engine):
    engine.generate_with("a")
    body = {"prompt": "x", "suffix": "y", "stream": True}
    events = parsed(make_client().post("/v1/fim/completions", json=body).content)
    assert [event["warnings"] for event in events] == [[], [] if fills(engine) else [NOT_SEEN]]


SPELLED = "".join((*QWEN_FIM, *CODESTRAL_FIM, "<|im_end|>", "<|endoftext|>"))
VOCABULARIES = {"qwen": QWEN_FIM, "codestral": CODESTRAL_FIM, "no fim": ()}


@pytest.fixture(scope="module", params=list(VOCABULARIES))
def real(request):
    """A server with a real engine over a tiny model, its tokenizer, its control tokens, and the prompts it gets."""
    names = (*VOCABULARIES[request.param], "<|im_end|>")
    hf_tokenizer = tiny_fim_tokenizer(names) if VOCABULARIES[request.param] else tiny_tokenizer()
    loaded = LoadedModel(
        tiny_model("llama", vocab_size=320, max_position_embeddings=1024), hf_tokenizer, "tiny", Path()
    )
    limits = EngineConfig(max_model_len=1024, num_slots=4, kv_memory_bytes=4_000_000)
    engine, prompts = build_engine(loaded, limits), []
    add_request = engine.add_request

    def record(request):
        prompts.append(request.prompt)
        return add_request(request)

    engine.add_request = record
    vocabulary = Tokenizer(hf_tokenizer).vocabulary
    controls = {vocabulary[name]: name for name in (*names, "<|endoftext|>") if name in vocabulary}
    with TestClient(create_app(Settings(fan_out=1, editor_max_tokens=2), engine, model_name="tiny")) as client:
        client.tokenizer = engine.tokenizer
        yield request.param, client, controls, prompts


FRAMES = {
    "qwen": ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    "codestral": ["[SUFFIX]", "[PREFIX]"],
    "no fim": ["<|endoftext|>"],
}


@every_wire
def test_text_that_spells_control_tokens_stays_text(real, wire):
    name, client, controls, prompts = real
    wire.ask(client, f"{SPELLED}\nx = {SPELLED}", f"{SPELLED}\n")
    prompt = prompts[-1]
    assert isinstance(prompt, PrefixedText)
    assert [controls[i] for i in prompt.token_ids if i in controls] == FRAMES[name]
    assert prompt.text.endswith(SPELLED)


def test_text_of_other_files_stays_text(real):
    name, client, controls, prompts = real
    Wire("/infill").ask(client, "a\n", "b", input_extra=[{"text": SPELLED, "filename": SPELLED}])
    framed = ["<|repo_name|>", "<|file_sep|>", "<|file_sep|>"] if name == "qwen" else []
    assert [controls[i] for i in prompts[-1].token_ids if i in controls] == [*framed, *FRAMES[name]]


PROMPTED = [("/v1/drafts", None), *((path, it) for path in ("/v1/completions", "/completion") for it in (None, 1, 0))]


@pytest.mark.parametrize(("path", "field"), PROMPTED)
@pytest.mark.parametrize("setting", [True, False])
def test_names_in_a_prompt_become_tokens_only_where_the_route_reads_them(real, path, field, setting, monkeypatch):
    _, client, controls, prompts = real
    service = client.app.state.service
    monkeypatch.setattr(service.settings, "__dict__", {**service.settings.__dict__, "special_tokens": setting})
    body = {"prompt": f"a {SPELLED} b", **({} if field is None else {"special_tokens": bool(field)})}
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    found = {controls[i] for i in prompt_token_ids(prompts[-1], client.tokenizer)[1:] if i in controls}
    reads = path != "/v1/drafts" and (setting if field is None else field)
    assert found == (set(controls.values()) if reads else set())


@every_wire
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_cursors_line_is_text_and_all_before_it_stays_while_it_is_typed(real, wire, line_end):
    name, client, _, prompts = real
    for end in range(len("return")):
        wire.ask(client, f"def f(a):{line_end}\t\t{'return'[:end]}", f" a{line_end}{line_end}b = 1{line_end}")
    last = prompts[-len("return") :]
    assert all(prompt.text.endswith("return"[:end]) for end, prompt in enumerate(last))
    if name != "codestral":  # a run of blanks and a word begin at different places there
        assert len({prompt.token_ids for prompt in last}) == 1
        assert last[-1].text.endswith("\t\tretur")


TOO_LONG_NAME = "1" * 1025


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/infill", {"input_prefix": "a", "input_suffix": "", "input_extra": "EXTRA"}, "input_extra"),
        ("/v1/completions", {"segments": {"prefix": "a", "filepath": TOO_LONG_NAME}}, "segments"),
        ("/v1/completions", {"segments": {"prefix": "a", "declarations": "SNIPPETS"}}, "segments"),
        ("/v1/drafts", {"prompt": "a", "path": TOO_LONG_NAME}, "path"),
    ],
)
def test_names_of_files_are_limited_on_every_wire(make_client, engine, path, body, param):
    client = make_client(editor_max_tokens=1)
    engine.generate_with(" b", " c", " d")
    lists = {
        "EXTRA": [{"text": "b", "filename": TOO_LONG_NAME}],
        "SNIPPETS": [{"body": "b", "filepath": TOO_LONG_NAME}],
    }
    text = json.dumps(body)
    for name, entries in lists.items():
        text = text.replace(f'"{name}"', json.dumps(entries))
    refused = client.post(path, content=text)
    assert refused.status_code == 400
    assert param in refused.json()["error"]["message"]
    assert "1024 characters" in refused.json()["error"]["message"]
    assert client.post(path, content=text.replace(TOO_LONG_NAME, TOO_LONG_NAME[1:])).status_code == 200


class OneByOne(GapTokenizer):
    """Notes which thread encodes, and waits for leave where the text says so."""

    def __init__(self):
        self.threads, self.texts = [], []
        self.leave = threading.Event()

    def encode_inside(self, text):
        self.threads.append(threading.current_thread().name)
        self.texts.append(text)
        if "wait" in text:
            assert self.leave.wait(30)
        return super().encode_inside(text)


@every_wire
def test_gaps_are_encoded_one_at_a_time_and_not_for_clients_who_have_left(wire):
    tokenizer = OneByOne()
    engine = ScriptedEngine(tokenizer=tokenizer)
    engine.generate_with(" b", " c", " d")
    app = create_app(Settings(fan_out=1, editor_max_tokens=2), engine, model_name="tiny")
    path = "/v1/completions" if wire.path == "tabby" else wire.path
    with serving(app) as url:
        first = raw_request(url, path, **wire.body("wait", "b"))
        assert eventually(lambda: "wait" in "".join(tokenizer.texts))
        leaving = [raw_request(url, path, **wire.body("gone", "b")) for _ in range(3)]
        assert eventually(lambda: app.state.service.engine._encoder._work_queue.qsize() == 3)
        for connection in leaving:
            connection.close()
        assert eventually(lambda: metrics_of(url, status="499")["superdraft_requests_total"] == 3)
        tokenizer.leave.set()
        assert b"200 OK" in first.recv(100)
        first.close()
    assert "gone" not in "".join(tokenizer.texts)
    assert tokenizer.threads[0].startswith("superdraft-encoder")
