"""Layers in the weight format int4, kept next to the weights that they were made from.

Finding the 4-bit levels of half a billion weights takes longer than all else at a start: about 20 s of one core. A
layer is stored under a hash of a sample of its dense weights, so it is found again wherever the model has it.
"""

import contextlib
import functools
import hashlib
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from superdraft.decoding.durable import new_file
from superdraft.decoding.model import quantise
from superdraft.decoding.model.linear import Conversion, DenseLinear, Linear
from superdraft.decoding.model.native import linear as native_linear
from superdraft.decoding.model.native.linear import NativeLinear

_LAST_SAMPLE = 15  # of the rows of a weight
_CHECKSUM = "checksum"


class StoredConversion:
    """A conversion that looks for the converted layer in a folder first, and puts it there if it is missing.

    That the model has passed the runner's check is remembered there, too, for this code on these libraries.

    Args:
        convert: the conversion. Only the layers of the native kernels are stored.
        folder: of these weights alone. What cannot be read there is converted again; what cannot be written is not.
    """

    def __init__(self, convert: Conversion, folder: Path) -> None:
        self._convert = convert
        self._entry = folder
        self._folder = folder / f"layers-{_layout()}"

    @property
    def has_passed(self) -> bool:
        """Whether the same weights passed the runner's check before, with this code."""
        return self._pass.is_file()

    def record_pass(self) -> None:
        """Remember that the runner's check was passed."""
        with contextlib.suppress(OSError):  # without it, the next start checks again
            if self._folder.is_dir():
                self._pass.touch()

    @property
    def _pass(self) -> Path:
        return self._folder / f"passed-{_checked_code()}"

    def __call__(self, linear: DenseLinear, *, is_head: bool = False) -> Linear:
        """See `Conversion`."""
        path = self._folder / f"{_name(linear, is_head=is_head)}.safetensors"
        stored = _read(path, linear)
        if stored is not None:
            return stored
        made = self._convert(linear, is_head=is_head)
        if isinstance(made, NativeLinear):
            self._store(path, made)
        return made

    def _store(self, path: Path, layer: NativeLinear) -> None:
        with contextlib.suppress(OSError):  # without it, the next start takes longer
            if not self._folder.is_dir():
                for outdated in self._entry.glob("layers-*"):
                    shutil.rmtree(outdated, ignore_errors=True)
                self._folder.mkdir()
            _write(path, layer)


@functools.cache
def _layout() -> str:
    """Changes with the code that decides what is in a layer: rounding, and the kernels' sources."""
    folder = Path(native_linear.__file__).parent
    return _digest([Path(quantise.__file__), folder / "linear.py", *sorted(folder.glob("*.h")), folder / "decoder.cpp"])


@functools.cache
def _checked_code() -> str:
    """Changes with what the runner's check checks: the modules of `decoding.model`, and the libraries below them."""
    sources = sorted(Path(quantise.__file__).parent.glob("*.py"))
    return _digest(sources, f"{torch.__version__} {transformers.__version__}")


def _digest(sources: Sequence[Path], versions: str = "") -> str:
    digest = hashlib.sha256(versions.encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:8]


def _name(linear: DenseLinear, *, is_head: bool) -> str:
    pieces = linear.weights  # one or more, whether or not they were joined meanwhile
    num_outputs, num_inputs = sum(map(len, pieces)), pieces[0].shape[1]
    digest = hashlib.sha256(repr((is_head, num_outputs, num_inputs, pieces[0].dtype)).encode())
    sampled = {(num_outputs - 1) * sample // _LAST_SAMPLE for sample in range(_LAST_SAMPLE + 1)}
    start = 0
    for piece in pieces:
        for row in sorted(sampled.intersection(range(start, start + len(piece)))):
            _update(digest, piece[row - start])
        start += len(piece)
    if linear.bias is not None:
        _update(digest, linear.bias)
    return digest.hexdigest()[:32]


def _update(digest: Any, numbers: Tensor) -> None:
    digest.update(numbers.detach().contiguous().view(torch.uint8).numpy().data)


def _checksum(parts: Mapping[str, Tensor]) -> int:
    found = 0
    for name in sorted(parts):
        found = zlib.crc32(parts[name].view(torch.uint8).numpy().data, found)
    return found


def _read(path: Path, linear: DenseLinear) -> NativeLinear | None:
    try:
        parts: dict[str, Tensor] = load_file(path)
        if int(parts.pop(_CHECKSUM)) != _checksum(parts):
            return None
        # Copied: what is read at every step is best in memory of its own, which may have large pages.
        found = NativeLinear.from_parts({name: part.clone() for name, part in parts.items()})
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    num_outputs = sum(len(piece) for piece in linear.weights)
    return found if found.shape == (num_outputs, linear.weights[0].shape[1]) else None


def _write(path: Path, layer: NativeLinear) -> None:
    with contextlib.suppress(OSError, SafetensorError), new_file(path) as partial:
        parts = layer.parts()
        save_file(parts | {_CHECKSUM: torch.tensor(_checksum(parts))}, partial)
