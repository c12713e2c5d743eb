"""Superposed embeddings."""

import pytest
import torch

from superdraft.decoding.method.superposition import superpose


def test_each_sequence_gets_its_own_blend():
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 8.0]])
    blended = superpose(embeddings, [[0.25, 0.75], [1.0]])
    assert blended.tolist() == [[0.25, 0.75], [4.0, 8.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_hot_weights_give_the_embedding_itself(dtype):
    embeddings = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    blended = superpose(embeddings, [[0.0, 1.0, 0.0]])
    assert blended.dtype == dtype
    assert torch.equal(blended[0], embeddings[1])


def test_small_weights_count_in_bfloat16():
    embeddings = torch.tensor([[256.0], [1.0]], dtype=torch.bfloat16)
    many = superpose(embeddings, [[0.5, 0.5]])
    assert float(many[0, 0]) == pytest.approx(128.5, abs=0.51)
