"""The native decoder on token trees: to the last bit what it gives for separate texts."""

import random

import pytest
import torch
from support.native_models import make_runner
from support.token_trees import RandomTrees, Text

from superdraft.decoding.model.segments import Segment

MAX_TEXTS = 14


@pytest.mark.usefixtures("_variant")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["llama", "mistral, window", "qwen2, two windows", "qwen3"])
def test_a_tree_equals_separate_texts_to_the_last_bit(name, seed):
    """Prompts longer than a part of 256 positions, several rows in a slot, and blocks of rows behind a path."""
    rng = random.Random(seed)
    tree, apart = make_runner(name, num_slots=3), make_runner(name, num_slots=MAX_TEXTS)
    prompts = [[rng.randrange(1, 300) for _ in range(length)] for length in (523, 261, 7)]
    trees = RandomTrees(rng, prompts, tree.num_cells, counts=(1, 1, 1, 3, 8, 21))
    slots: dict[Text, int] = {text: slot for slot, text in enumerate(trees.texts)}
    num_compared = num_forks = 0
    for _ in range(14):
        for _ in range(rng.randint(0, 3)):
            if (forked := trees.fork(MAX_TEXTS)) is not None:
                source, twin = forked
                slots[twin] = next(slot for slot in range(MAX_TEXTS) if slot not in slots.values())
                apart.cache.copy(slots[source], slots[twin], len(twin.token_ids))
                num_forks += 1
        if rng.random() < 0.3 and (dropped := trees.drop()) is not None:
            del slots[dropped]
        fed = trees.feed()
        tokens = [token for one in fed for token in one.token_ids]
        plain = [Segment.plain(slots[one.text], one.segment.start, one.segment.count) for one in fed]
        kept = range(len(tokens))
        got = tree.forward([one.segment for one in fed], tree.embed(tokens), kept)
        assert torch.equal(got, apart.forward(plain, apart.embed(tokens), kept))
        num_compared += len(tokens)
    assert num_forks > 8
    assert num_compared > 1000


@pytest.mark.usefixtures("_variant")
@pytest.mark.parametrize("name", ["llama", "mistral, window"])
def test_other_cells_of_the_slot_are_never_read(name):
    runner = make_runner(name)
    ids = [(37 * i) % 299 + 1 for i in range(301)]
    runner.prefill([0], [ids[:300]], [0])
    rows = [Segment(0, 290, 3, 290, (400, 333, 777)), Segment(0, 300, 1, 300, (310,))]
    inputs = runner.embed([5, 6, 7, 8])
    clean = runner.forward(rows, inputs, range(4))
    held = torch.zeros(runner.num_cells, dtype=torch.bool)
    held[:300] = True
    for layer in runner.cache.layers:
        layer.keys[:, :, ~held] = float("nan")
        layer.values[:, :, ~held] = float("nan")
    assert torch.equal(runner.forward(rows, inputs, range(4)), clean)
