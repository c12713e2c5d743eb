"""What a request says of decoding, and what it does not, over HTTP and a real engine."""

import itertools

import pytest
from starlette.testclient import TestClient
from support.decoding import tiny_engine
from support.models import tiny_tokenizer
from support.sse import parsed

from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.server.app import create_app
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.settings import Settings

DISTINCT = DraftingDefaults("distinct", max_branches=3, min_probability=0.01)
WHOLE_CHARACTERS = {
    str(token_id): -100
    for token_id, token in enumerate(Tokenizer(tiny_tokenizer()).token_bytes)
    if not (token.isascii() and token.decode().isprintable())
}
INSIDE_WORDS = ("Please find the rep", "We're meeting at n", "The quick br", "Thank you for your em")


@pytest.fixture(scope="module")
def client():
    engine, _ = tiny_engine(num_slots=8, document_start=True)
    with TestClient(create_app(Settings(), engine, model_name="tiny", drafting=DISTINCT)) as client:
        yield client


def drafts(client, **body):
    response = client.post("/v1/drafts", json={"prompt": INSIDE_WORDS[0], "max_tokens": 6, **body})
    assert response.status_code == 200, response.text
    return response.json()


def choices(client, prompt, **body):
    """The (text, reason) of each choice, of a stream joined by index."""
    response = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 6, **body})
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return [(choice["text"], choice["finish_reason"]) for choice in response.json()["choices"]]
    joined = {}
    for event in parsed(response.content):
        for choice in event["choices"]:
            text, _ = joined.get(choice["index"], ("", None))
            joined[choice["index"]] = (text + choice["text"], choice["finish_reason"])
    return [joined[index] for index in sorted(joined)]


@pytest.mark.parametrize("healing", [True, False])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    "strategy",
    [
        {},
        {"selection": "paper"},
        {"strategy": "greedy"},
        {"strategy": "sample", "seed": 3},
        {"strategy": "sample+superposed", "seed": 3},
    ],
)
def test_logprobs_echo_and_stream_change_no_text(client, strategy, n, healing):
    client.app.state.service.fan_out._window_s = 0
    for prompt in INSIDE_WORDS:
        fields = {"n": n, "token_healing": healing, **strategy}
        plain = choices(client, prompt, **fields)
        for logprobs, echo, stream in itertools.product((None, 2), (False, True), (False, True)):
            shown = choices(client, prompt, logprobs=logprobs, echo=echo, stream=stream, **fields)
            assert shown == [(prompt * echo + text, reason) for text, reason in plain]


def test_logprobs_of_a_healed_draft_spell_its_text(client):
    for prompt in INSIDE_WORDS:
        body = {"prompt": prompt, "max_tokens": 6, "n": 2, "logprobs": 1, "logit_bias": WHOLE_CHARACTERS}
        for echo in (False, True):
            for choice in client.post("/v1/completions", json={**body, "echo": echo}).json()["choices"]:
                assert "".join(choice["logprobs"]["tokens"]) == choice["text"]


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_logprobs_of_an_empty_prompt_are_the_drafts_alone(client, max_tokens):
    body = {"prompt": "", "max_tokens": max_tokens, "logprobs": 1, "echo": True, "logit_bias": WHOLE_CHARACTERS}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert len(choice["logprobs"]["token_logprobs"]) == max_tokens
    assert None not in choice["logprobs"]["token_logprobs"]


def test_an_improbable_draft_says_so_on_the_native_wire_and_stops_on_openais(client):
    asked = {"min_probability": 1}
    answer = drafts(client, num_drafts=2, min_draft_tokens=2, **asked)
    assert [(draft["finish_reason"], len(draft["tokens"])) for draft in answer["drafts"]] == [("improbable", 2)] * 2
    whole = drafts(client, max_tokens=2, min_draft_tokens=2, **asked)  # no token was left anyway
    assert {draft["finish_reason"] for draft in whole["drafts"]} == {"length"}
    streamed = parsed(client.post("/v1/drafts", json={"prompt": "The", "stream": True, **asked}).content)[-1]
    assert {draft["finish_reason"] for draft in streamed["drafts"]} == {"improbable"}
    for stream in (False, True):
        assert {reason for _, reason in choices(client, "The", n=2, stream=stream, **asked)} == {"stop"}
    assert {reason for _, reason in choices(client, "The", n=2, min_probability=0)} == {"length"}


def test_alpha_0_alone_is_the_published_method_without_n_grams(client):
    published = drafts(client, selection="paper", alpha=0, num_drafts=4)
    assert texts(drafts(client, alpha=0, num_drafts=4)) == texts(published)
    assert texts(drafts(client, num_drafts=4)) != texts(published)
    assert published["usage"]["forward_rows"] == 5  # one row
    assert drafts(client, alpha=0, selection="distinct", num_drafts=4)["warnings"] == []
    assert texts(drafts(client, alpha=0, selection="distinct", num_drafts=4)) == texts(drafts(client, num_drafts=4))


def texts(answer):
    return [draft["text"] for draft in answer["drafts"]]


def test_prompt_tokens_do_not_count_the_token_that_begins_a_document():
    usages, first_words = [], []
    for document_start in (True, False):
        engine, _ = tiny_engine(document_start=document_start)
        with TestClient(create_app(Settings(), engine, model_name="tiny", drafting=DISTINCT)) as client:
            answer = drafts(client, prompt="The ", num_drafts=3)
            usages.append(answer["usage"]["prompt_tokens"])
            first_words.append(texts(answer))
    assert usages[0] == usages[1]
    assert first_words[0] != first_words[1]  # the model has seen another token
