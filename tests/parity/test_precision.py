"""Batches, slots, trees and copies change logits by a few rounding errors, in bfloat16 and with 4-bit weights."""

import pytest
import torch
from support.models import tiny_model

from superdraft.decoding.model.linear_int4 import convert_int4
from superdraft.decoding.model.segments import Segment
from superdraft.decoding.model.torch_runner import TorchRunner

ARCHITECTURES = ("llama", "gpt2", "gemma3_text", "mistral")
# bfloat16 has 8 significant bits: neighbouring numbers near the largest logit differ by 1/128 of it. Two layers of
# operations in a different order may change a logit by a few of these steps.
TOLERANCE_STEPS = 6
# A batch may use the dense weights where a single request uses the 4-bit ones. Unlike weights that were quantised
# before, random weights lose 1/15 of each group's range to rounding.
INT4_TOLERANCE_STEPS = 16


@pytest.mark.parametrize("convert", [None, convert_int4], ids=["bfloat16", "int4"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_alone_in_a_batch_in_a_used_slot_in_a_tree_and_after_a_copy(architecture, convert):
    # Weights of the usual size: with large random weights every layer multiplies the rounding errors.
    model = tiny_model(architecture, initializer_range=0.05).to(torch.bfloat16)
    runner = TorchRunner(model, 64, 1_000_000, num_slots=4, convert=convert)
    prompt, others = [5, 80, 31, 7, 7, 99, 120], [[3, 4, 5], [9] * 11, [200]]
    alone = runner.prefill([0], [prompt], [0])[0]
    tolerance = (INT4_TOLERANCE_STEPS if convert else TOLERANCE_STEPS) * float(alone.abs().max()) / 128

    def assert_same(logits: torch.Tensor) -> None:
        assert float((logits.float() - alone.float()).abs().max()) <= tolerance

    assert_same(runner.prefill([2, 0, 3, 1], [others[0], prompt, *others[1:]], [0] * 4)[1])
    assert_same(runner.prefill([1], [prompt], [0])[0])  # a slot that another request has used
    runner.cache.copy(1, 3, 5)
    assert_same(runner.prefill([3], [prompt[5:]], [5])[0])
    # Two rows behind the first six tokens, and the last two tokens in cells far behind.
    rows = [Segment(3, 6, 1, 6, (8,)), Segment(3, 6, 1, 6, (6,)), Segment(3, 5, 2, 5, (40, 9))]
    tree = runner.forward(rows, runner.embed([8, prompt[-1], *prompt[5:]]), [1, 3])
    assert_same(tree[0])
    assert_same(tree[1])
    runner.prefill([0, 1], [prompt[:-1], others[0]], [0, 0])
    assert_same(runner.decode(runner.embed([prompt[-1], 8]), [len(prompt) - 1, 3])[0])
