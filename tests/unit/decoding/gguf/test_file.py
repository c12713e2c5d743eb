"""GGUF files against gguf-py's reader; damaged ones are refused in one line, before memory is taken."""

import random
import re
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from support.gguf_files import write_gguf

from superdraft.decoding.errors import BrokenModelError, ModelLoadError, UnsupportedModelError
from superdraft.decoding.families import spec_of_gguf
from superdraft.decoding.gguf.file import GgufFile
from superdraft.decoding.loading.loader import ModelOptions, load_gguf
from superdraft.decoding.runner_choice import load

TEXTS = ["", "word", "é漢🙂", " \n"]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_it_says_what_gguf_pys_reader_says(path):
    file, reader = GgufFile(path), gguf.GGUFReader(path)
    own = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert file.metadata.keys() == own.keys()
    for name, field in own.items():
        value, expected = file.metadata[name], field.contents()
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == expected, name
    assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        found = file.tensors[tensor.name]
        assert (found.type, found.shape) == (tensor.tensor_type, tuple(tensor.shape[::-1]))
        assert (found.offset, found.num_bytes) == (tensor.data_offset, tensor.n_bytes)
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        taken = file.vector(tensor.name) if numbers.ndim == 1 else file.matrix(tensor.name).numbers()
        assert torch.equal(taken, torch.from_numpy(numbers.copy()))


def test_every_kind_of_value(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "values.gguf", "llama")
    values = {
        "add_uint8": 200, "add_int8": -3, "add_uint16": 60_000, "add_int16": -3, "add_uint32": 4_000_000_000,
        "add_int32": -3, "add_float32": 0.5, "add_bool": True, "add_string": "é", "add_uint64": 2**40,
        "add_int64": -(2**40), "add_float64": 1e-300,
    }  # fmt: skip
    for name, value in values.items():
        getattr(writer, name)(name, value)
    writer.add_array("texts", TEXTS)
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("floats", [0.5, 1.5])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = GgufFile(tmp_path / "values.gguf").metadata
    assert {name: found[name] for name in values} == values
    assert (found["texts"], found["numbers"].tolist(), found["floats"].tolist()) == (TEXTS, [1, -2, 3], [0.5, 1.5])


def refused(data: bytes, path: Path, kind: type[ModelLoadError] | tuple[type[ModelLoadError], ...]) -> str:
    path.write_bytes(data)
    with pytest.raises(kind) as info:
        GgufFile(path)
    message = str(info.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def place_of(data: bytes, tensor: str) -> int:
    """The byte after a tensor's name, in the list of tensors."""
    name = tensor.encode()
    return data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)


def with_type(data: bytes, tensor: str, kind: int) -> bytes:
    place = place_of(data, tensor)
    (dims,) = struct.unpack_from("<I", data, place)
    place += 4 + 8 * dims
    return data[:place] + struct.pack("<I", kind) + data[place + 4 :]


@pytest.mark.parametrize(
    ("damage", "kind", "said"),
    [
        (lambda data: b"", BrokenModelError, "is empty"),
        (lambda data: b"GGML" + data[4:], BrokenModelError, "does not begin with GGUF"),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], UnsupportedModelError, "version 1; versions 2 and 3"),
        (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], UnsupportedModelError, "little-endian"),
        (lambda data: data[:100], BrokenModelError, "does not end within the file's 100 bytes"),
        (lambda data: data[:-1], BrokenModelError, "tensor output_norm.weight ends at byte"),
        (lambda data: data[:8] + struct.pack("<Q", 2**60) + data[16:], BrokenModelError, "does not end within"),
        (lambda data: data[:16] + struct.pack("<Q", 2**60) + data[24:], BrokenModelError, "does not end within"),
        (lambda data: with_type(data, "blk.1.attn_k.weight", 12), BrokenModelError,
         r"rows of tensor blk\.1\.attn_k\.weight have 32 numbers, and blocks of Q4_K have 256"),
        (lambda data: data.replace(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight"), BrokenModelError, "the same name"),
    ],
)  # fmt: skip
def test_damage_is_named(path, tmp_path, damage: Callable[[bytes], bytes], kind, said):
    message = refused(damage(path.read_bytes()), tmp_path / "bad.gguf", kind)
    assert re.search(said, message), message


def test_a_type_that_cannot_be_read_is_refused_where_it_is_needed(path, tmp_path):
    """llama.cpp may run such a file, and needs its tokenizer from here."""
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(with_type(path.read_bytes(), "blk.1.attn_k.weight", 16))
    assert len(load_gguf(ModelOptions(model=str(odd), runner="llamacpp")).tokenizer) == 301
    said = r"blk\.1\.attn_k\.weight .* is of type 16; these can be read: F32, .*Q6_K.* --runner llamacpp"
    with pytest.raises(UnsupportedModelError, match=said):
        spec_of_gguf(GgufFile(odd), 64)
    with pytest.raises(UnsupportedModelError, match=said):
        load(ModelOptions(model=str(odd), runner="torch", device="cpu"), 64)


def test_vectors_and_matrices_are_not_taken_for_one_another(path):
    file = GgufFile(path)
    with pytest.raises(BrokenModelError, match=r"output_norm\.weight .* expected two dimensions"):
        file.matrix("output_norm.weight")
    with pytest.raises(BrokenModelError, match=r"token_embd\.weight .* expected one dimension of F32 or F16"):
        file.vector("token_embd.weight")


def test_no_damage_does_more_than_to_refuse_the_file(path, tmp_path):
    """Bytes of the head changed at random: the file is read, or refused in one line; no memory is taken for it."""
    data, chance = path.read_bytes(), random.Random(0)
    head = min(tensor.offset for tensor in GgufFile(path).tensors.values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    messages = []
    for _ in range(300):
        damaged = bytearray(data[: chance.randrange(len(data))] if chance.random() < 0.2 else data)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(min(head, len(damaged))) if damaged else 0
            if damaged:
                damaged[place] = chance.choice((0, 1, 127, 255, chance.randrange(256)))
        (tmp_path / "bad.gguf").write_bytes(damaged)
        try:
            GgufFile(tmp_path / "bad.gguf")
        except ModelLoadError as error:
            messages.append(str(error))
    assert 80 < len(messages) < 300
    assert not any("\n" in message for message in messages)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
