"""The fastest of the right ways is taken; what fails or is wrong is left out with its reason."""

import logging
from collections.abc import Callable

import pytest
import torch

from superdraft.decoding import attention_choice
from superdraft.decoding.attention_choice import AttentionShape, choose_attention
from superdraft.decoding.decode_attention import Candidate, masked_sdpa
from superdraft.decoding.errors import UnsupportedModelError

CPU = torch.device("cpu")
GROUPED, SINGLE_HEADS = AttentionShape(5, 2, 4, 16, 300), AttentionShape(1, 4, 1, 32, 64)


class Clock:
    """Time passes only in candidates."""

    def __init__(self) -> None:
        self.now_ms = 0.0

    def time_ms(self, run: Callable[[], object]) -> float:
        before = self.now_ms
        run()
        return self.now_ms - before

    def candidate(self, cost_ms: float, change: Callable | None = None, **options: bool) -> Candidate:
        """Takes its time; `change` alters the result."""

        def attention(queries, keys, values, lengths, mask, scale):
            self.now_ms += cost_ms
            mixed = masked_sdpa(queries, keys, values, lengths, mask, scale)
            return mixed if change is None else change(mixed)

        return Candidate(attention, **options)


def shifted(by: int) -> Candidate:
    """Sees that many positions too many or too few."""

    def attention(queries, keys, values, lengths, _mask, scale):
        visible = torch.arange(keys.shape[2]) <= lengths[:, None, None, None] + by
        return torch.nn.functional.scaled_dot_product_attention(queries, keys, values, visible, scale=scale)

    return Candidate(attention)


def fails(*_: object) -> torch.Tensor:
    raise RuntimeError("no kernel\nfor this shape")


def choose(candidates: dict[str, Candidate], shape: AttentionShape = GROUPED, dtype=torch.bfloat16, **options):
    scale = shape.head_dim**-0.5
    return choose_attention(shape, dtype, CPU, scale=scale, candidates=candidates, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [GROUPED, SINGLE_HEADS])
def test_the_fastest_right_one_is_taken(shape, dtype, caplog):
    clock = Clock()
    candidates = {
        "slow": clock.candidate(3.0),
        "fast": clock.candidate(2.0),
        "too large": clock.candidate(1.0, lambda mixed: mixed * 1.2),
        "not a number": clock.candidate(1.0, lambda mixed: mixed * float("nan")),
        "of another shape": clock.candidate(1.0, lambda mixed: mixed[:, :1]),
        "without kernel": Candidate(fails),
    }
    with caplog.at_level(logging.INFO):
        choice = choose(candidates, shape, dtype, timer=clock.time_ms)
    assert (choice.name, choice.attention) == ("fast", candidates["fast"].attention)
    assert [trial.time_ms for trial in choice.trials] == [3.0, 2.0, None, None, None, None]
    reasons = [str(trial.reason) for trial in choice.trials[2:]]
    assert [reason.startswith("is off by") for reason in reasons] == [True, True, True, False]
    assert reasons[3] == "failed: RuntimeError: no kernel for this shape"
    assert [str(trial) in caplog.text for trial in choice.trials] == [True] * 6


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("shape", [GROUPED, SINGLE_HEADS])
def test_one_position_too_many_or_too_few_shows(shape, by):
    assert choose({"right": shifted(0)}, shape, timer=Clock().time_ms).name == "right"
    with pytest.raises(UnsupportedModelError, match="off by one is off by"):
        choose({"off by one": shifted(by)}, shape, timer=Clock().time_ms)


def test_a_candidate_that_cannot_be_timed_is_left_out():
    def timer(run: Callable[[], object]) -> float:
        run()
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(UnsupportedModelError, match=r"No way to compute attention of .* on cpu works: .*not permitted"):
        choose({"waits for the host": Clock().candidate(1.0)}, timer=timer)


def test_windows_need_the_mask_and_what_is_not_simple_is_left_out_on_request():
    clock = Clock()
    candidates = {
        "lengths": clock.candidate(1.0),
        "compiled": clock.candidate(2.0, reads_mask=True, is_compiled=True),
        "private": clock.candidate(2.5, reads_mask=True, is_public=False),
        "mask": clock.candidate(3.0, reads_mask=True),
    }
    assert choose(candidates, timer=clock.time_ms).name == "lengths"
    assert choose(candidates, timer=clock.time_ms, has_window=True).name == "compiled"
    only_mask = choose(candidates, timer=clock.time_ms, has_window=True, tries_all=False)
    assert [trial.name for trial in only_mask.trials] == ["mask"]


def test_away_from_a_gpu_it_is_torch_s_attention_with_the_mask():
    choice = choose_attention(GROUPED, torch.float32, CPU, scale=0.25)
    assert (choice.name, choice.attention, choice.trials) == ("sdpa", masked_sdpa, ())


def test_without_memory_for_trials_it_is_torch_s_attention_with_the_mask(monkeypatch, caplog):
    def layers(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(attention_choice, "_layers", layers)
    choice = choose({"mask": Clock().candidate(1.0)}, timer=Clock().time_ms)
    assert (choice.name, choice.attention, choice.trials) == ("sdpa", masked_sdpa, ())
    assert "no memory" in caplog.text
