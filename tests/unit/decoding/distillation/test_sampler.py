"""The corpus sampler: the choice of tokens against the definition, its logits and texts against transformers."""

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import tiny_model, tiny_tokenizer

from superdraft.decoding.distillation.sampler import SamplerConfig, TextSampler, weights_fingerprint
from superdraft.decoding.engine.decode import DecodeStep
from superdraft.decoding.errors import BrokenModelError, InvalidRequestError, UnsupportedModelError
from superdraft.decoding.loading.loader import LoadedModel
from superdraft.decoding.method.sampling import nucleus_sample
from superdraft.decoding.text.tokenizer import Tokenizer

EOS = 0
ARCHITECTURES = ["llama", "gpt2", "gemma3_text", "mistral", "opt"]


def sampler(model, num_rows=3, row_tokens=24, prompts=(), **choice):
    loaded = LoadedModel(model, tiny_tokenizer(), "tiny", Path())
    return TextSampler(loaded, SamplerConfig(num_rows, row_tokens, **choice), prompts)


@pytest.fixture
def short_texts(monkeypatch):
    """One choice in ten is turned into the end of the text, so that rows hold several."""
    rng = np.random.default_rng(0)

    def choose(logits, *rest):
        return nucleus_sample(logits, *rest).masked_fill(torch.from_numpy(rng.random(len(logits)) < 0.1), EOS)

    monkeypatch.setattr("superdraft.decoding.engine.decode.nucleus_sample", choose)


@pytest.fixture
def logits_of(monkeypatch):
    """The model's logits from which each row's sampled tokens were chosen, in order, by the row's index."""
    seen = defaultdict(list)
    choose = DecodeStep.choose

    def noted(self, rows, logits, faults, known=()):
        for row in rows:
            seen[int(row.branch.sequence.request_id)].append(logits[row.index].clone())
        choose(self, rows, logits, faults, known)

    monkeypatch.setattr(DecodeStep, "choose", noted)
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
    short = sampler(model, 512, 2, top_p=0.9)
    tokens = np.concatenate([short.sample(5, part)[:, 0] for part in range(8)])
    logits = model(input_ids=torch.tensor([[EOS]])).logits[0, -1]
    logits[list(Tokenizer(tiny_tokenizer()).suppressed_token_ids)] = -torch.inf
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
@pytest.mark.usefixtures("short_texts")
@pytest.mark.parametrize("prompts", [[], [[10], [20, 21, 22], [30, 31]]])
def test_logits_equal_those_of_the_plain_model_in_every_text_of_a_row(architecture, prompts, logits_of):
    """A text sees nothing of the one before it; its positions and sliding window begin again."""
    model = tiny_model(architecture)
    rows = sampler(model, 4, 60, prompts).sample(seed=3)
    lengths = []
    for index, row in enumerate(rows):
        logits = iter(logits_of[index])
        for text, _ in texts_of(row):
            expected = model(input_ids=torch.tensor([[EOS, *text[:-1]]]), use_cache=False).logits[0]
            num_given = next((len(prompt) for prompt in prompts if prompt[0] == text[0]), 0)
            for after_token in expected[num_given:]:
                torch.testing.assert_close(next(logits), after_token, rtol=1e-3, atol=1e-3)
            lengths.append(len(text))
        assert next(logits, None) is None
    assert len(lengths) > 12
    assert max(lengths) > 16  # twice the sliding window


@pytest.mark.parametrize("prompts", [[], [[10], [20, 21, 22], [30, 31]]])
def test_the_same_seed_and_part_give_the_same_rows_and_others_do_not(prompts):
    first = sampler(tiny_model("llama"), prompts=prompts)
    rows = first.sample(11, 2)
    assert rows.shape == (3, 24)
    other = first.sample(11, 3)
    # Nothing that the engine keeps may leak from part to part.
    assert (first.sample(11, 2) == rows).all()
    assert (sampler(tiny_model("llama"), prompts=prompts).sample(11, 2) == rows).all()
    assert (other != rows).any()
    assert (first.sample(12, 2) != rows).any()
    assert (rows[0] != rows[1]).any()


def test_a_text_does_not_depend_on_the_other_rows_of_its_part():
    few, many = (sampler(tiny_model("llama"), num_rows).sample(7) for num_rows in (2, 5))
    assert (many[:2] == few).all()


@pytest.mark.usefixtures("short_texts")
def test_every_text_begins_with_a_prompt_and_prompts_are_drawn_at_random():
    prompts = [[10], [20, 21, 22], [30, 31]]
    begun, cut = set(), set()
    for row in sampler(tiny_model("llama"), 30, 40, prompts).sample(1):
        for text, _ in texts_of(row):
            (prompt,) = (prompt for prompt in prompts if text[: len(prompt)] == prompt[: len(text)])
            begun.add(prompt[0])
            cut.add(len(text) <= len(prompt))
    assert begun == {10, 20, 30}
    assert cut == {True, False}  # some rows end within a prompt


@pytest.mark.usefixtures("short_texts")
@pytest.mark.parametrize("prompts", [[], [[10], [20, 21, 22]]])
def test_the_reported_numbers_of_tokens_add_up(prompts):
    reported = []
    sampler(tiny_model("llama"), 4, 30, prompts).sample(2, on_tokens=reported.append)
    assert sum(reported) == 4 * 30
    if not prompts:
        assert reported == [4] * 30 + [0]


def test_several_ends_of_text_are_written_as_the_tokenizers_own():
    model = tiny_model("llama")
    model.generation_config.eos_token_id = [EOS, 50]
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.where(torch.arange(300) == 50, 12.0, 0.0))
    rows = sampler(model, 4, 40).sample(0)
    assert 50 not in rows
    assert (rows == EOS).sum() > 10


def test_tokens_that_no_text_holds_are_never_sampled():
    """Wide output: 300 tokens and 20 rows of padding, which get the highest logits."""
    model = tiny_model("llama", vocab_size=320)
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.cat([torch.zeros(300), torch.full((20,), 50.0)]))
    assert sampler(model, 4, 8).sample(0).max() < 300


def test_a_row_longer_than_the_context_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"128 tokens and its start token do not fit .* context of 128"):
        sampler(tiny_model("llama"), 1, 128)
    assert sampler(tiny_model("llama"), 1, 127).sample(0).shape == (1, 127)


def test_a_tokenizer_without_a_start_token_is_refused(monkeypatch):
    monkeypatch.setattr(Tokenizer, "start_token_id", None)
    with pytest.raises(UnsupportedModelError, match="no token that begins a text"):
        sampler(tiny_model("llama"))


def test_logits_that_are_not_numbers_stop_the_run():
    model = tiny_model("llama")
    broken = sampler(model)
    model.get_output_embeddings().bias = torch.nn.Parameter(torch.full((300,), math.nan))
    with pytest.raises(BrokenModelError, match="not numbers"):
        broken.sample(0)


def test_an_error_of_the_model_is_raised_as_it_is(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("too many rows")

    monkeypatch.setattr(DecodeStep, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError, match="too many rows"):
        sampler(tiny_model("llama")).sample(0)


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"temperature": 2.1}, {"top_p": 0}, {"top_p": 1.1}])
def test_a_choice_out_of_range_is_refused(wrong):
    with pytest.raises(InvalidRequestError, match="must be a number from"):
        sampler(tiny_model("llama"), **wrong)


def test_the_fingerprint_tells_weights_apart():
    model = tiny_model("llama")
    assert weights_fingerprint(model) == weights_fingerprint(tiny_model("llama"))
    assert weights_fingerprint(model) != weights_fingerprint(tiny_model("llama", seed=1))
