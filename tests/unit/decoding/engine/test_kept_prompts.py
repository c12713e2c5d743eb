"""Which prompts are kept for reuse: those whose logits are numbers."""

import math
from collections.abc import Callable

import pytest
import torch
from support.fake_runner import fake_engine

from superdraft.decoding.errors import SequenceFailedError
from superdraft.decoding.params import GenerationParams

PROMPT = list(range(70, 80))


def with_value(forward: Callable[..., torch.Tensor], value: float) -> Callable[..., torch.Tensor]:
    """A forward whose logits have this value for one token."""

    def changed(*args: object) -> torch.Tensor:
        logits = forward(*args)
        logits[:, 5] = value
        return logits

    return changed


@pytest.mark.parametrize("num_known", [0, len(PROMPT) - 1], ids=["cold", "warm"])
@pytest.mark.parametrize(
    ("value", "is_kept"), [(0.0, True), (-math.inf, True), (math.inf, False), (math.nan, False)], ids=str
)
def test_a_prompt_is_kept_unless_its_logits_are_not_numbers(num_known, value, is_kept, monkeypatch):
    """`-inf` is a number here: a model may give it to tokens that it never chooses.

    A failed request leaves nothing in its slot, not even what it found there.
    """
    engine, runner, _ = fake_engine()
    params = GenerationParams(max_tokens=1, alpha=0.0, tau=1.0)
    if num_known:
        engine.generate(PROMPT[:num_known], params)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "forward", with_value(runner.forward, value))
        if is_kept:
            assert engine.generate(PROMPT, params).drafts
        else:
            with pytest.raises(SequenceFailedError, match="not numbers"):
                engine.generate(PROMPT, params)
    longer = engine.generate([*PROMPT, 80], params)
    assert longer.usage.cached_tokens == (len(PROMPT) if is_kept else 0)
