"""What `superdraft lab eval` measures is what is served: the same drafts in the process and over HTTP."""

import pytest
from starlette.testclient import TestClient
from support.models import tiny_model_folder

from superdraft.evaluation.decoders.decoder_spec import parse_decoder
from superdraft.evaluation.decoders.decoders import Ask
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.server.serving import load_app
from superdraft.server.settings import Settings

PROMPTS = {
    "a word's end": "Thank you for your",
    "half a word": "Please find the rep",
    "a trailing space": "The quick brown ",
    "one word": "Thank",
    "behind punctuation": "We're meeting at noon,",
    "an indent": "def add(a, b):\n    ",
}
SHARED = {"num_drafts": 3, "max_tokens": 6}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_model_folder(tmp_path_factory.mktemp("models"), "llama"))


@pytest.fixture
def ask(model, monkeypatch):
    """Ask a server over HTTP: (text, score) of each draft."""
    monkeypatch.delenv("SUPERDRAFT_DEFAULT_MAX_BRANCHES")
    settings = Settings(model=model, dtype="float32", device="cpu", num_threads=1, max_model_len=96)
    app = load_app(settings)
    with TestClient(app) as client:

        def post(prompt, **fields):
            body = {"prompt": prompt, "num_drafts": 3, "max_tokens": 6, **fields}
            answer = client.post("/v1/drafts", json=body)
            assert answer.status_code == 200, answer.text
            return [(draft["text"], draft["score"]) for draft in answer.json()["drafts"]]

        yield post


def measured(model, decoder):
    """(text, score) of each draft of each prompt, by a decoder of `superdraft lab eval`."""
    spec = parse_decoder(decoder, "auto", SHARED)
    workbench = Workbench(ModelChoice(model, "float32", "cpu"), list(PROMPTS.values()), [spec])
    asks = [Ask(text, name) for name, text in PROMPTS.items()]
    decoded = workbench.decoder(spec).decode(asks)
    return [[(draft.text, draft.score) for draft in one.drafts] for one in decoded]


@pytest.mark.parametrize(
    ("decoder", "fields"),
    [
        ("served", {}),
        ("served healing=off", {"token_healing": False}),
        ("paper", {"selection": "paper"}),
        ("served trim=word alpha=0.3", {"trim": "word", "alpha": 0.3}),
        ("greedy", {"strategy": "greedy", "num_drafts": 1}),
    ],
)
def test_a_decoder_gives_what_its_request_is_answered(model, ask, decoder, fields):
    for (name, prompt), drafts in zip(PROMPTS.items(), measured(model, decoder), strict=True):
        expected = ask(prompt, **fields)
        assert [text for text, _ in drafts] == [text for text, _ in expected], name
        assert [score for _, score in drafts] == pytest.approx([score for _, score in expected], abs=1e-3), name


def test_the_decoders_of_the_test_above_differ(model, monkeypatch):
    monkeypatch.delenv("SUPERDRAFT_DEFAULT_MAX_BRANCHES")
    served, unhealed, paper = (measured(model, name) for name in ("served", "served healing=off", "paper"))
    assert served != unhealed
    assert served != paper


def test_drafts_of_four_bit_weights_are_judged_by_the_dense_ones(model):
    spec = parse_decoder("paper", "auto", SHARED)
    workbench = Workbench(ModelChoice(model, "int4", "cpu"), list(PROMPTS.values()), [spec])
    prompt = PROMPTS["a word's end"]
    (decoded,) = workbench.decoder(spec).decode([Ask(prompt, "0")])
    (judged,) = workbench.open_evaluator().logprobs([prompt], [[draft.text for draft in decoded.drafts]])
    assert len(judged) == len(decoded.drafts)
    assert all(logprobs and max(logprobs) < 0 for logprobs in judged)
