"""The batched sampler: the choice of tokens against the definition, its logits and texts against transformers."""

import math

import numpy as np
import pytest
import torch
from support.models import tiny_model, tiny_tokenizer

from superdraft.decoding.distillation.sampler import SamplerConfig, TextSampler
from superdraft.decoding.errors import BrokenModelError, UnsupportedModelError
from superdraft.decoding.method.sampling import nucleus_sample
from superdraft.decoding.text.tokenizer import Tokenizer

EOS = 0
ARCHITECTURES = ["llama", "gpt2", "gemma3_text", "mistral", "opt"]


def tokenizer():
    return Tokenizer(tiny_tokenizer())


def sampler(model, num_rows=3, row_tokens=24, prompts=(), **choice):
    return TextSampler(model, tokenizer(), SamplerConfig(num_rows, row_tokens, **choice), prompts)


@pytest.fixture
def all_logits(monkeypatch):
    """The logits of every step; one choice in ten is turned into the end of the text, so that rows hold several."""
    seen, rng = [], np.random.default_rng(0)

    def choose(logits, *rest):
        seen.append(logits.clone())
        return nucleus_sample(logits, *rest).masked_fill(torch.from_numpy(rng.random(len(logits)) < 0.1), EOS)

    monkeypatch.setattr("superdraft.decoding.distillation.sampler.nucleus_sample", choose)
    return seen


def texts_of(row):
    """Each text of a row and whether it ended."""
    text = []
    for token in row.tolist():
        text.append(token)
        if token == EOS:
            yield text, True
            text = []
    if text:
        yield text, False


def nucleus_by_hand(logits, temperature, top_p):
    """id -> probability, by the definition."""
    weights = [math.exp(x / temperature) for x in logits]
    total = math.fsum(weights)
    nucleus, mass = {}, 0.0
    for i in sorted(range(len(logits)), key=lambda i: -logits[i]):
        nucleus[i] = weights[i] / total
        mass += nucleus[i]
        if mass >= top_p:
            break
    return {i: p / mass for i, p in nucleus.items()}


def test_frequencies_over_a_whole_run_are_those_of_the_nucleus():
    """The numbers of all rows and steps together: a generator that repeats itself or favours a row would show."""
    model = tiny_model("llama")
    num = 8 * 512
    one_token = sampler(model, 512, 1, top_p=0.9)
    tokens = np.concatenate([one_token.sample(5, part)[:, 0] for part in range(8)])
    logits = model(input_ids=torch.tensor([[EOS]])).logits[0, -1]
    logits[list(tokenizer().suppressed_token_ids)] = -torch.inf
    expected = nucleus_by_hand(logits.tolist(), 1.0, 0.9)
    assert set(tokens.tolist()) <= set(expected)
    frequent = [i for i, p in expected.items() if num * p >= 5]
    counts = np.bincount(tokens, minlength=len(logits))
    chi_square = sum((counts[i] - num * expected[i]) ** 2 / (num * expected[i]) for i in frequent)
    degrees = len(frequent)
    assert chi_square < degrees + 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_temperature_0_equals_transformers_greedy(architecture):
    model = tiny_model(architecture)
    prompts = [[17], [40, 41, 42], [99, 100]]
    seen = set()
    for row in sampler(model, 6, 70, prompts, temperature=0).sample(seed=1):
        prompt = next(prompt for prompt in prompts if row[: len(prompt)].tolist() == prompt)
        inputs = torch.tensor([[EOS, *prompt]])
        expected = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_length=71, pad_token_id=EOS
        )
        first_text, _ = next(texts_of(row))
        assert first_text == expected[0, 1:].tolist()
        seen.add(tuple(prompt))
    assert len(seen) > 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_equal_those_of_the_plain_model_in_every_text_of_a_row(architecture, all_logits, monkeypatch):
    """Static cache against none. A text sees nothing of the one before it; its positions and window begin anew."""
    monkeypatch.setattr("superdraft.decoding.distillation.sampler._READ_STEP", 16)
    model = tiny_model(architecture)
    rows = sampler(model, 4, 60).sample(seed=3)
    lengths = []
    for index, row in enumerate(rows):
        step = 0
        for text, _ in texts_of(row):
            expected = model(input_ids=torch.tensor([[EOS, *text[:-1]]]), use_cache=False).logits[0]
            got = torch.stack([logits[index] for logits in all_logits[step : step + len(text)]])
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
            step += len(text)
            lengths.append(len(text))
    assert len(lengths) > 12
    assert max(lengths) > 16  # twice the sliding window


def test_the_same_seed_and_part_give_the_same_rows_and_others_do_not():
    first = sampler(tiny_model("llama"))
    rows = first.sample(11, 2)
    assert rows.shape == (3, 24)
    other = first.sample(11, 3)
    # The sampler's own state (cache, begins) must not leak from part to part.
    assert (first.sample(11, 2) == rows).all()
    assert (sampler(tiny_model("llama")).sample(11, 2) == rows).all()
    assert (other != rows).any()
    assert (first.sample(12, 2) != rows).any()


def test_every_text_begins_with_a_prompt_and_prompts_are_drawn_at_random(all_logits):
    prompts = [[10], [20, 21, 22], [30, 31]]
    begun = set()
    for row in sampler(tiny_model("llama"), 8, 40, prompts).sample(1):
        for text, _ in texts_of(row):
            (prompt,) = (prompt for prompt in prompts if text[: len(prompt)] == prompt[: len(text)])
            begun.add(prompt[0])
    assert begun == {10, 20, 30}


def test_tokens_that_no_text_holds_are_never_sampled():
    """Wide output: 300 tokens and 20 rows of padding, which get the highest logits."""
    model = tiny_model("llama", vocab_size=320)
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.cat([torch.zeros(300), torch.full((20,), 50.0)]))
    wide = Tokenizer(tiny_tokenizer(), model_vocab_size=320)
    assert TextSampler(model, wide, SamplerConfig(4, 8)).sample(0).max() < 300


def test_a_row_longer_than_the_context_is_refused():
    with pytest.raises(UnsupportedModelError, match="129 tokens does not fit in the model's context of 128"):
        sampler(tiny_model("llama"), 1, 129)


def test_logits_that_are_not_numbers_stop_the_run():
    model = tiny_model("llama")
    model.get_output_embeddings().bias = torch.nn.Parameter(torch.full((300,), math.nan))
    with pytest.raises(BrokenModelError, match="not numbers"):
        sampler(model).sample(0)


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"top_p": 0}, {"top_p": 1.1}, {"row_tokens": 0}])
def test_config_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        SamplerConfig(**{"num_rows": 1, "row_tokens": 1} | wrong)
