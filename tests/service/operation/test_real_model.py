"""The whole product on the default model: text in, drafts out."""

import pytest
from starlette.testclient import TestClient

from superdraft.server.serving import load_app
from superdraft.server.settings import Settings

PROMPT = "Thank you for your email. I will"


@pytest.fixture(scope="module")
def real_client(default_gguf):
    # With float32, answers do not depend on what else is in the batch.
    settings = Settings(max_model_len=256, num_threads=1, dtype="float32")
    app = load_app(settings)
    with TestClient(app) as client:
        yield client


def ask(client, path, **body):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_three_different_drafts(real_client):
    answer = ask(real_client, "/v1/completions", prompt=PROMPT, n=3, max_tokens=10)
    texts = [choice["text"] for choice in answer["choices"]]
    assert len(set(texts)) == 3
    assert all(text.startswith(" ") for text in texts)
    assert answer["usage"]["prompt_tokens"] == 8


def test_one_row_a_step_and_scores_best_first(real_client):
    body = {"prompt": PROMPT, "num_drafts": 8, "max_tokens": 6, "token_healing": False, "selection": "paper"}
    answer = ask(real_client, "/v1/drafts", **body)
    assert answer["usage"]["forward_rows"] == 5  # the first token comes from the prompt's pass
    scores = [draft["score"] for draft in answer["drafts"]]
    assert scores == sorted(scores, reverse=True)
    assert all("".join(draft["tokens"]) == draft["text"] for draft in answer["drafts"])


def test_drafts_begin_differently_and_take_rows_while_they_are_probable(real_client):
    text = f"Dear all,\n\n{PROMPT}"  # nothing has been drafted after it yet
    body = {"prompt": text, "num_drafts": 3, "max_tokens": 10, "token_healing": False}
    whole = ask(real_client, "/v1/drafts", min_probability=0, **body)
    assert len({draft["text"].split()[0] for draft in whole["drafts"]}) == 3
    assert whole["usage"]["forward_rows"] == 27
    new = ask(real_client, "/v1/drafts", **(body | {"prompt": f"Hello,\n\n{PROMPT}"}))
    assert 0 < new["usage"]["forward_rows"] < 20
    short = ask(real_client, "/v1/drafts", **body)  # goes where the whole ones went
    assert (short["usage"]["forward_rows"], short["usage"]["reused_drafts"]) == (0, 3)
    for draft, longer in zip(short["drafts"], whole["drafts"], strict=True):
        assert longer["text"].startswith(draft["text"])
    one_row = ask(real_client, "/v1/drafts", max_branches=1, min_probability=0, **body)
    assert one_row["usage"]["forward_rows"] == 9


def test_who_asks_for_n_grams_or_for_a_long_text_gets_what_the_method_says(real_client):
    body = {"prompt": PROMPT, "num_drafts": 3, "max_tokens": 6, "token_healing": False}
    for field in ({"alpha": 0.5}, {"tau": 0.1}, {"reset_every": 3, "seed": 1}):
        answer = ask(real_client, "/v1/drafts", **body, **field)
        if "reset_every" not in field:
            assert answer["usage"]["forward_rows"] == 5
    long = ask(real_client, "/v1/drafts", **(body | {"max_tokens": 40}))
    assert len(long["drafts"][0]["token_ids"]) == 40 or long["drafts"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "prompt", [PROMPT, "The meeting is on Friday at 10", "Let's have lunch at the", "Please let me kn"]
)
def test_naming_an_ngram_model_leaves_drafts_that_begin_differently(real_client, prompt):
    plain = ask(real_client, "/v1/drafts", prompt=prompt, max_tokens=10)["drafts"]
    named = ask(real_client, "/v1/drafts", prompt=prompt, max_tokens=10, ngram_model="smollm2-135m")["drafts"]
    assert len({draft["text"] for draft in named}) == len(plain)
    assert named[0]["tokens"][0] == plain[0]["tokens"][0]
    # The scores are the language model's in both answers: what is shown first is no less probable.
    assert named[0]["score"] == pytest.approx(plain[0]["score"], abs=0.1)


def test_first_logprob_is_the_verified_one(real_client):
    draft = ask(real_client, "/v1/drafts", prompt=PROMPT, num_drafts=1, max_tokens=4, token_healing=False)["drafts"][0]
    choice = ask(real_client, "/v1/completions", prompt=PROMPT, max_tokens=4, logprobs=1)["choices"][0]
    assert choice["text"] == draft["text"]
    assert choice["logprobs"]["tokens"] == draft["tokens"]
    assert choice["logprobs"]["token_logprobs"][0] == pytest.approx(draft["token_logprobs"][0], abs=1e-3)


def test_echo_without_new_tokens_scores_the_prompt(real_client):
    text = "Cafés 🦙 are nice"
    choice = ask(real_client, "/v1/completions", prompt=text, max_tokens=0, echo=True, logprobs=1)["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"] == text
    assert logprobs["token_logprobs"][0] is None
    assert all(value < 0 for value in logprobs["token_logprobs"][1:])
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if "\ufffd" not in token:
            assert text.startswith(token, offset)


def test_batch_equals_one_by_one(real_client):
    prompts = [PROMPT, "Once upon a time"]
    together = ask(real_client, "/v1/completions", prompt=prompts, n=2, max_tokens=5)["choices"]
    alone = [
        choice
        for prompt in prompts
        for choice in ask(real_client, "/v1/completions", prompt=prompt, n=2, max_tokens=5)["choices"]
    ]
    assert [choice["text"] for choice in together] == [choice["text"] for choice in alone]


def test_limits_of_the_real_engine_are_400(real_client):
    for field, value in (("prompt", "word " * 300), ("prompt", [10**6]), ("max_tokens", 256)):
        body = {"prompt": PROMPT, field: value}
        response = real_client.post("/v1/completions", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == field


def test_half_typed_word_is_finished(real_client):
    healed = ask(real_client, "/v1/drafts", prompt="Please let me kn", max_tokens=4)
    assert len(healed["drafts"]) == 3
    assert all(draft["text"].startswith("ow") for draft in healed["drafts"])
    choices = ask(real_client, "/v1/completions", prompt="Please let me kn", max_tokens=4, n=3)["choices"]
    assert [choice["text"] for choice in choices] == [draft["text"] for draft in healed["drafts"]]


def test_three_samples_take_three_rows_a_step(real_client):
    body = {"prompt": PROMPT, "strategy": "sample", "seed": 1, "max_tokens": 5, "token_healing": False}
    first = ask(real_client, "/v1/drafts", **body)
    assert first["usage"]["forward_rows"] == 3 * 4
    assert [draft["text"] for draft in ask(real_client, "/v1/drafts", **body)["drafts"]] == [
        draft["text"] for draft in first["drafts"]
    ]
