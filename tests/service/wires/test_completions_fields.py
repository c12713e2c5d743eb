"""The table of fields in docs/http-api.md, field by field and strategy by strategy, against a real engine.

Each field has a probe here: fields to send, and what must be true of the answer if they are honoured. A field that is
ignored changes nothing but the warnings; one that is accepted changes nothing at all.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.decoding import HashScorer, tiny_engine
from support.models import QWEN_FIM, VOCAB_SIZE, tiny_fim_tokenizer, tiny_model, tiny_tokenizer
from support.ngram_folders import NamedScorers
from support.rounded import nearly
from support.sse import parsed

from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.loading.loader import LoadedModel
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.server.app import create_app
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.settings import Settings
from superdraft.server.wires.editors import NOT_SEEN

DRAFTING = DraftingDefaults(alpha=0.3, tau=0.8)

DOCS = Path(__file__).parents[3] / "docs" / "http-api.md"
STRATEGIES = ("superposed", "sample", "greedy", "sample+superposed")
WORDS = {"honoured", "ignored, warning", "partial, warning", "accepted", "400", "404"}
PROMPT = "We're meeting at n"


def documented_table() -> dict[str, dict[str, str]]:
    """Field -> strategy -> word, from the Markdown table under the heading of its own."""
    section = DOCS.read_text().split("### What each strategy does with a field\n")[1].split("\n#")[0]
    header, _, *rows = [line for line in section.splitlines() if line.startswith("|")]
    names = [cell.strip().strip("`") for cell in header.strip("|").split("|")]
    assert tuple(names[1:]) == STRATEGIES
    table = {}
    for row in rows:
        labels, *words = [cell.strip() for cell in row.strip("|").split("|")]
        for label in labels.split("; "):
            assert label not in table
            table[label] = dict(zip(STRATEGIES, words, strict=True))
    return table


TABLE = documented_table()


NEW_LINE = str(tiny_tokenizer().encode("\n")[0])
PRINTABLE = {
    str(token_id): -100
    for token_id, token in enumerate(Tokenizer(tiny_tokenizer()).token_bytes)
    if not (token.isascii() and token.decode().isprintable())
}


class Asker:
    """Asks one server under one strategy."""

    def __init__(self, client: TestClient, strategy: str) -> None:
        self.client = client
        self.body = {
            "prompt": PROMPT,
            "max_tokens": 8,
            "strategy": strategy,
            "seed": 5,
            "token_healing": False,
            "logit_bias": PRINTABLE,
        }

    def post(self, **fields: Any) -> Any:
        body = {**self.body, **fields}
        if self.body["strategy"] in ("superposed", "greedy") and "seed" not in fields:
            del body["seed"]  # would be warned of
        return self.client.post("/v1/completions", json={k: v for k, v in body.items() if v is not ABSENT})

    def __call__(self, **fields: Any) -> dict[str, Any]:
        response = self.post(**fields)
        assert response.status_code == 200, response.text
        return response.json()

    def texts(self, **fields: Any) -> list[str]:
        return [choice["text"] for choice in self(**fields)["choices"]]


ABSENT = object()


@dataclass
class Probe:
    """How a row is tried.

    Attributes:
        fields: what is sent.
        holds: whether they were honoured.
        param: the field that an error or a warning names.
        base: fields of the request with which an answer must agree if they are not honoured.
    """

    fields: dict[str, Any]
    holds: Callable[[Asker], bool] = lambda ask: False
    param: str = ""
    base: dict[str, Any] = field(default_factory=dict)


def shows_usage(ask: Asker) -> bool:
    events = parsed(ask.post(stream=True, stream_options={"include_usage": True}).content)
    return events[-1]["choices"] == [] and events[-1]["usage"] == without_cache(ask()["usage"], events[-1]["usage"])


def without_cache(usage: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {**usage, "prompt_tokens_details": other["prompt_tokens_details"]}


def streams(ask: Asker) -> bool:
    events = parsed(ask.post(stream=True).content)
    return "".join(event["choices"][0]["text"] for event in events) == ask.texts()[0]


def shows_best_of(ask: Asker) -> bool:
    return ask.texts(n=2, best_of=4) == ask.texts(n=4)[:2] and len(ask.texts(n=4)) > 2


def cuts_at_stop(ask: Asker) -> bool:
    (text,) = ask.texts()
    stop = next(text[i : i + 2] for i in range(1, len(text)) if text[i : i + 2].isascii())
    choice = ask(stop=["never", stop])["choices"][0]
    return choice["text"] == text[: text.index(stop)] and choice["finish_reason"] == "stop"


def has_exact_logprobs(ask: Asker) -> bool:
    """Those of the plain model: the same that the prompt's tokens get, when the draft is sent as a prompt."""
    choice = ask(logprobs=2)["choices"][0]
    again = ask(prompt=PROMPT + choice["text"], logprobs=2, echo=True, max_tokens=0)["choices"][0]["logprobs"]
    own = choice["logprobs"]
    assert {len(top) for top in own["top_logprobs"]} <= {2, 3}
    start = next(i for i, offset in enumerate(again["text_offset"]) if offset == len(PROMPT))
    assert again["tokens"][start:] == own["tokens"]
    return again["token_logprobs"][start:] == pytest.approx(own["token_logprobs"], abs=1e-3)


def repeats_by_seed(ask: Asker) -> bool:
    hot = {"temperature": 1.5, "n": 3}
    return ask.texts(seed=1, **hot) == ask.texts(seed=1, **hot) != ask.texts(seed=2, **hot)


def is_certain(name: str) -> Callable[[Asker], bool]:
    """With this field at 0 every seed gives the same tokens, at 1 not."""

    def holds(ask: Asker) -> bool:
        at = [{str(ask.texts(seed=seed, max_tokens=3, **{name: value})) for seed in range(6)} for value in (0, 1)]
        return len(at[0]) == 1 < len(at[1])

    return holds


def discourages(name: str) -> Callable[[Asker], bool]:
    """With a high penalty fewer tokens are repeated, over a few prompts."""

    def repetitions(ask: Asker, penalty: float) -> int:
        fields = {"logprobs": 0, "max_tokens": 24, name: penalty}
        drafts = [ask(prompt=PROMPT + end, **fields)["choices"][0]["logprobs"]["tokens"] for end in ("", "o", "oon.")]
        return sum(len(tokens) - len(set(tokens)) for tokens in drafts)

    return lambda ask: repetitions(ask, 2) < repetitions(ask, -2)


def heals(ask: Asker) -> bool:
    half_a_word = {"prompt": PROMPT + "o", "n": 4}
    return ask.texts(token_healing=True, **half_a_word) != ask.texts(token_healing=False, **half_a_word)


def stays_on_the_line(ask: Asker) -> bool:
    likely = {"logit_bias": {**PRINTABLE, NEW_LINE: 9}}
    return "\n" in ask.texts(**likely)[0] and "\n" not in ask.texts(**likely, single_line=True)[0]


def reads_names(ask: Asker) -> bool:
    """As a token, the name is one; as text, it has several."""
    counts = [
        ask(prompt=f"{PROMPT}<|endoftext|>a", special_tokens=value)["usage"]["prompt_tokens"] for value in (True, False)
    ]
    return counts[0] + 5 < counts[1]


def fills(ask: Asker) -> bool:
    answer = ask(suffix=" tomorrow.")
    plain = ask()
    return answer["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] and bool(answer["choices"])


def keeps_out(ask: Asker) -> bool:
    (text,) = ask.texts(suffix="\n\n")
    return len(text) > 1 and ask.texts(suffix=f"{text}\n") == [""]


PROBES = {
    "`model`": Probe({"model": "superdraft"}, lambda ask: ask(model="superdraft")["model"] == "tiny"),
    "`model`, not served": Probe({"model": "gpt-4"}),
    "`prompt`": Probe({"prompt": "The q"}, lambda ask: ask.texts(prompt="The q") != ask.texts()),
    "`prompt`, several": Probe(
        {"prompt": ["The q", PROMPT]},
        lambda ask: ask.texts(prompt=["The q", PROMPT]) == [*ask.texts(prompt="The q"), *ask.texts()],
    ),
    "`prompt`, missing": Probe({"prompt": ABSENT}, param="prompt"),
    "`max_tokens`": Probe({"max_tokens": 3}, lambda ask: ask(max_tokens=3)["usage"]["completion_tokens"] == 3),
    "`n`": Probe({"n": 3}, lambda ask: len(ask.texts(n=3)) == 3),
    "`n`, above the server's limit": Probe({"n": 99}, param="n"),
    "`best_of`": Probe({"best_of": 4}, shows_best_of),
    "`best_of`, less than `n`": Probe({"n": 2, "best_of": 1}, param="best_of"),
    "`echo`": Probe({"echo": True}, lambda ask: ask.texts(echo=True) == [PROMPT + ask.texts()[0]]),
    "`suffix`, the model has tokens for gaps": Probe({"suffix": " tomorrow."}, fills),
    "`suffix`, the model has none": Probe({"suffix": " tomorrow."}, keeps_out),
    "`stop`": Probe({"stop": ["e"]}, cuts_at_stop),
    "`logprobs`": Probe({"logprobs": 2}, has_exact_logprobs),
    "`logprobs`, more than 5": Probe({"logprobs": 6}, param="logprobs"),
    "`stream`": Probe({"stream": True}, streams),
    "`stream_options`, with `stream`": Probe(
        {"stream": True, "stream_options": {"include_usage": True}}, shows_usage, param="stream_options"
    ),
    "`stream_options`, without `stream`": Probe({"stream_options": {"include_usage": True}}, param="stream_options"),
    "`temperature`": Probe({"temperature": 0.5}, is_certain("temperature")),
    "`top_p`": Probe({"top_p": 0.5}, is_certain("top_p")),
    "`seed`": Probe({"seed": 3}, repeats_by_seed),
    "`frequency_penalty`": Probe({"frequency_penalty": 2}, discourages("frequency_penalty")),
    "`presence_penalty`": Probe({"presence_penalty": 2}, discourages("presence_penalty")),
    "`logit_bias`": Probe(
        {"logit_bias": {NEW_LINE: 100}}, lambda ask: ask.texts(logit_bias={NEW_LINE: 100})[0][0] == "\n"
    ),
    "`user`": Probe({"user": "somebody"}),
    "unknown fields": Probe({"top_k": 3, "extra": {"deep": [1]}}),
    "`token_healing`": Probe({"token_healing": True}, heals),
    "`single_line`": Probe({"single_line": True}, stays_on_the_line),
    "`min_probability_shown`, with selection `distinct`": Probe(
        {"selection": "distinct", "min_probability_shown": 1},
        lambda ask: ask.texts(selection="distinct", min_probability_shown=1) == [""],
        param="min_probability_shown",
    ),
    "`special_tokens`": Probe({"special_tokens": False}, reads_names),
}


@pytest.fixture(scope="module")
def clients():
    ngrams = NamedScorers({"hash": HashScorer()}, default="hash")
    settings = Settings(fan_out=1)
    engine, _ = tiny_engine(num_slots=8)
    fim_model = tiny_model("llama", vocab_size=VOCAB_SIZE + len(QWEN_FIM))
    limits = EngineConfig(max_model_len=96, num_slots=8, kv_memory_bytes=1_000_000)
    gaps = build_engine(LoadedModel(fim_model, tiny_fim_tokenizer(), "llama", Path()), limits)
    with (
        TestClient(create_app(settings, engine, model_name="tiny", ngram_models=ngrams, drafting=DRAFTING)) as plain,
        TestClient(create_app(settings, gaps, model_name="tiny", ngram_models=ngrams, drafting=DRAFTING)) as filler,
    ):
        yield plain, filler


def test_every_field_has_a_probe_and_every_probe_a_field():
    assert set(TABLE) == set(PROBES)
    assert {word for row in TABLE.values() for word in row.values()} <= WORDS


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("label", TABLE)
def test_row(clients, label, strategy):
    probe, word = PROBES[label], TABLE[label][strategy]
    plain, filler = clients
    ask = Asker(filler if "has tokens" in label else plain, strategy)
    response = ask.post(**probe.fields)
    name = probe.param or next(iter(probe.fields))
    if word in ("400", "404"):
        assert response.status_code == int(word)
        assert response.json()["error"]["param"] == name
        return
    assert response.status_code == 200
    answer = parsed(response.content)[-1] if "stream" in probe.fields else response.json()
    if word == "partial, warning":
        assert answer["warnings"] == [NOT_SEEN] == [response.headers["x-superdraft-warnings"]]
        assert probe.holds(ask)
        return
    warned = [warning for warning in answer["warnings"] if warning.startswith(f"{name} has no effect")]
    assert answer["warnings"] == warned
    assert bool(response.headers.get("x-superdraft-warnings")) == bool(warned)
    assert bool(warned) == (word == "ignored, warning")
    if word == "honoured":
        assert probe.holds(ask)
    else:
        assert nearly(answer["choices"]) == nearly(ask()["choices"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategy_by_field_by_alias_and_by_setting_is_the_same(strategy):
    def texts(client: TestClient, **fields: Any) -> list[str]:
        body = {"prompt": PROMPT, "n": 3, "seed": 4, "max_tokens": 8, **fields}
        answer = client.post("/v1/completions", json=body).json()
        assert answer["model"] == "tiny"
        return [choice["text"] for choice in answer["choices"]]

    def client(**settings: Any) -> TestClient:
        engine, _ = tiny_engine(num_slots=4)
        ngrams = NamedScorers({"hash": HashScorer()}, default="hash")
        app = create_app(Settings(**settings), engine, model_name="tiny", ngram_models=ngrams, drafting=DRAFTING)
        return TestClient(app)

    with client() as plain:
        by_field = texts(plain, strategy=strategy)
        for name in (f"tiny:{strategy}", f"superdraft:{strategy}"):
            assert texts(plain, model=name) == by_field
            assert plain.get(f"/v1/models/{name}").json()["id"] == name
        # The request's own word counts more than the alias.
        assert texts(plain, model="tiny:sample", strategy=strategy) == by_field
        if strategy == "superposed":
            assert texts(plain, strategy=None, model="superdraft") == by_field
            assert texts(plain, model="tiny:paper", selection="distinct") == texts(plain, selection="distinct")


def test_the_alias_paper_is_the_paper_s_method_whatever_the_servers_default():
    engine, _ = tiny_engine(num_slots=4)
    settings = Settings(default_selection="distinct")
    drafting = replace(DraftingDefaults.of(settings), alpha=0.3, tau=0.5)
    ngrams = NamedScorers({"hash": HashScorer()}, default="hash")
    body = {"prompt": "Thank you", "n": 3, "max_tokens": 6, "seed": 1}

    with TestClient(create_app(settings, engine, model_name="tiny", ngram_models=ngrams, drafting=drafting)) as client:

        def ask(**fields):
            answer = client.post("/v1/completions", json={**body, **fields}).json()
            return [choice["text"] for choice in answer["choices"]], answer["usage"]["forward_rows"]

        paper = ask(model="tiny:paper")
        assert paper == ask(strategy="superposed", selection="paper")
        assert paper != ask(model="tiny:distinct")
        native = client.post("/v1/drafts", json={"prompt": "Thank you", "model": "superdraft:paper", "max_tokens": 6})
        assert native.json()["usage"]["forward_rows"] <= 6  # one row per step


@pytest.mark.parametrize("strategy", ["sample", "sample+superposed"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "name"), [({"n": 33}, "n"), ({"best_of": 33}, "best_of")])
def test_too_many_rows_are_refused_in_the_requests_own_terms(clients, strategy, stream, fields, name):
    error = Asker(clients[0], strategy).post(**fields, stream=stream).json()["error"]
    assert error["param"] == name
    assert error["message"].startswith(f"{name} is {fields[name]}, this server allows at most")
    assert "num_" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [5, 6]}, "prompt"),
        ({"prompt": [[5, 6], [7]]}, "prompt"),
        ({"echo": True, "logprobs": 0}, "suffix"),
        ({"prompt": "word " * 200}, "prompt"),
    ],
)
def test_gaps_that_cannot_be_filled(clients, fields, param):
    error = Asker(clients[1], "superposed").post(suffix=" end.", **fields).json()["error"]
    assert error["param"] == param


def test_gap_of_several_prompts_with_echo_and_with_logprobs(clients):
    ask = Asker(clients[1], "superposed")
    prompts = ["def add(a", "We're"]
    echoed = ask(prompt=prompts, suffix=" end.", n=2, echo=True)["choices"]
    assert [choice["text"].startswith(prompts[i // 2]) for i, choice in enumerate(echoed)] == [True] * 4
    scored = ask(prompt=prompts, suffix=" end.", logprobs=1)["choices"]
    assert ["".join(choice["logprobs"]["tokens"]) for choice in scored] == [choice["text"] for choice in scored]
    assert ask(suffix="", token_healing=True)["warnings"] == []
    assert ask(suffix=" end.", token_healing=True, logprobs=1)["warnings"] == []
