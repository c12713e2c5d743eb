"""Drafts of an answer that a reader would take for the same: only the best of them is shown."""

import numpy as np
import pytest
import torch
from support.fake_runner import FakeRunner, fake_engine

from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.params import GenerationParams

PROMPT = "We"


class Scripted(FakeRunner):
    """A runner whose logits depend on the last token that was fed, by the probabilities of a script."""

    def follow(self, script: dict[int, dict[int, float]]) -> None:
        self._script = {self.as_bytes(self.embed([token])[0]): row for token, row in script.items()}

    def logits_after(self, fed):
        logits = torch.full((self.vocab_size,), -30.0)
        row = self._script.get(fed[-1], {})
        logits[list(row)] = torch.from_numpy(np.log(list(row.values())).astype(np.float32))
        return logits


@pytest.fixture
def drafts_of():
    """A function that returns the texts of drafts for a prompt, after a script of tokens' texts."""
    fake, _, clock = fake_engine()
    tokenizer, runner = fake.tokenizer, Scripted()
    engine = Engine(runner, tokenizer, fake.config, clock)
    ids = {text: token for token, text in enumerate(tokenizer.token_bytes)}
    ids[b"<end>"] = min(tokenizer.eos_token_ids)

    def generate(script, **options):
        last = tokenizer.encode(PROMPT)[-1]
        own = {ids[text]: {ids[child]: p for child, p in row.items()} for text, row in script.items() if text}
        runner.follow({last: {ids[child]: p for child, p in script[b""].items()}, **own})
        defaults = {"selection": "distinct", "alpha": 0.0, "tau": 1.0, "max_branches": options["num_drafts"]}
        params = GenerationParams(**(defaults | options))
        return [draft.text for draft in engine.generate(PROMPT, params).drafts]

    return generate


def test_no_draft_spells_the_beginning_of_another_one_with_more_tokens(drafts_of):
    # " the" is one token, and the model would write it after " t", too.
    script = {b"": {b" the": 0.6, b" t": 0.4}, b" t": {b"he": 0.9, b"o": 0.1}}
    assert drafts_of(script, num_drafts=2, max_tokens=2, min_probability=0.0)[1] == " to"


def test_a_line_that_ends_after_its_first_token_has_begun_like_no_other_draft(drafts_of):
    script = {b"": {b" t": 0.6, b" a": 0.4}, b" t": {b"\n": 0.9, b"o": 0.1}, b" a": {b"<end>": 0.9, b"n": 0.1}}
    assert drafts_of(script, num_drafts=2, max_tokens=2, single_line=True) == [" t", " a"]


def test_tokens_of_white_space_may_spell_another_beginning(drafts_of):
    # Tokenizers split white space by what follows, so both spellings of two spaces may be right.
    script = {b"": {b"  ": 0.6, b" ": 0.4}, b" ": {b" ": 0.9, b"o": 0.1}, b"  ": {b"a": 0.9}}
    assert drafts_of(script, num_drafts=2, max_tokens=2) == ["  a", "  "]


def test_drafts_that_differ_in_white_space_at_the_end_count_once(drafts_of):
    script = {b"": {b"a": 0.6, b"b": 0.4}, b"a": {b"\n": 0.6, b" ": 0.4}, b"b": {b"o": 1.0}}
    assert drafts_of(script, num_drafts=3, max_tokens=2) == ["a\n", "bo"]


def test_an_ended_draft_of_blanks_is_left_out_beside_others(drafts_of):
    script = {b"": {b" ": 0.6, b"b": 0.4}, b" ": {b"\n": 0.9}, b"b": {b"o": 0.9}}
    assert drafts_of(script, num_drafts=2, max_tokens=2, single_line=True) == ["bo"]
    assert drafts_of(script, num_drafts=1, max_tokens=2, single_line=True) == [" "]
