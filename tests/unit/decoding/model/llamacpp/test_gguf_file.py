"""What the runner reads from a file itself."""

import gguf
import numpy as np
import pytest
from support.gguf_files import HEADS, HIDDEN, LAYERS, write_gguf

from superdraft.decoding.errors import BrokenModelError
from superdraft.decoding.model.kv_cache import LayerShape
from superdraft.decoding.model.llamacpp import gguf_file
from superdraft.decoding.model.llamacpp.gguf_file import GgufFile


@pytest.fixture
def path(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf")


def shape_of(path) -> tuple[int, int]:
    tensor = next(one for one in gguf.GGUFReader(path).tensors if one.name == "token_embd.weight")
    return tuple(int(size) for size in reversed(tensor.shape))


@pytest.mark.parametrize("longest", [0, 10, 10**6])
def test_the_vocabulary_is_skipped_and_all_else_is_found(path, longest, monkeypatch):
    monkeypatch.setattr(gguf_file, "_LONGEST_ARRAY", longest)
    whole = gguf.GGUFReader(path)
    wanted = next(one for one in whole.tensors if one.name == "token_embd.weight")
    short = gguf_file._ShortReader(path)
    assert list(short.fields) == list(whole.fields)
    assert len(short.fields["tokenizer.ggml.tokens"].data) == (shape_of(path)[0] if longest > 10 else 0)
    found = GgufFile(path, shape_of(path))
    expected = gguf.dequantize(wanted.data, wanted.tensor_type)
    np.testing.assert_array_equal(found.embeddings([3, 0, 7]), expected[[3, 0, 7]])
    assert found.layer_shapes() == [LayerShape(HEADS, HIDDEN // HEADS, HIDDEN // HEADS)] * LAYERS


def test_embeddings_of_another_shape_are_refused(path):
    with pytest.raises(BrokenModelError, match=r"embeddings of the shape .* instead of \(5, 6\)"):
        GgufFile(path, (5, 6))
