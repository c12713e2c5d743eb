"""Manifest of an n-gram model: its properties, its origin, and the checksum of its binary.

A model is a folder with `model.bin` (a KenLM binary) and `manifest.json`. The manifest is written last, so its presence
means that the binary was complete at that time. The size and SHA-256 in it show whether the binary is still intact;
they are checked before KenLM opens the binary.
"""

import errno
import hashlib
import json
import os
import reprlib
import stat
import types
import typing
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from superdraft.ngram_models.durable import rename_durably
from superdraft.ngram_models.errors import BrokenNgramModelError, NgramModelNotFoundError, TokenizerMismatchError

FORMAT_VERSION: Final = 1
MANIFEST_FILE: Final = "manifest.json"
BINARY_FILE: Final = "model.bin"
MAX_VOCABULARY_SIZE: Final = 4_000_000  # fifteen times the largest known; a scorer keeps a string for each id
_MAX_MANIFEST_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TokenizerIdentity:
    """The tokenizer that the model is for. Its token ids are the model's words."""

    name: str
    fingerprint: str
    vocabulary_size: int
    end_of_text_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CorpusSummary:
    """The corpus that the model was built from. `num_tokens` includes the end-of-text tokens."""

    description: str
    num_tokens: int
    num_documents: int


@dataclass(frozen=True, slots=True)
class Tuning:
    """Parameters of Superposed Decoding that were tuned for this model."""

    alpha: float
    tau: float
    candidates_per_draft: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Contents of `manifest.json`.

    Attributes:
        name: the model's name when it was built.
        order: length of the longest n-gram, in tokens.
        tokenizer: the tokenizer that the model is for.
        corpus: what the model was built from.
        licence: licence of the model as a whole, as an SPDX expression or a sentence.
        binary_sha256: SHA-256 of `model.bin`, in hex.
        binary_bytes: size of `model.bin`.
        prune: for each order from 1 up, the count up to which n-grams were left out.
        quantize_bits: bits per quantised probability; None: full floats.
        backoff_quantize_bits: bits per quantised back-off weight; None: full floats.
        build_tool: name and version of the programs that built the model.
        tuning: tuned parameters; None: the model was not tuned.
        ngram_counts: number of n-grams of each order from 1 up; None: not recorded (older builds).
    """

    name: str
    order: int
    tokenizer: TokenizerIdentity
    corpus: CorpusSummary
    licence: str
    binary_sha256: str
    binary_bytes: int
    prune: tuple[int, ...]
    quantize_bits: int | None
    backoff_quantize_bits: int | None
    build_tool: str
    tuning: Tuning | None = None
    ngram_counts: tuple[int, ...] | None = None

    def write(self, folder: Path) -> None:
        """Write `manifest.json` atomically: readers see either the old file or the new one."""
        partial = folder / f".{MANIFEST_FILE}.partial"
        document = {"format_version": FORMAT_VERSION, **asdict(self)}
        partial.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        rename_durably(partial, folder / MANIFEST_FILE)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of a model's folder.

        Raises:
            NgramModelNotFoundError: the folder has no manifest, so it is not an n-gram model.
            BrokenNgramModelError: the manifest is unreadable, has wrong fields or has another format version.
        """
        path = folder / MANIFEST_FILE
        try:
            with _open_file(path) as file:
                content = file.read(_MAX_MANIFEST_BYTES + 1)
            if len(content) > _MAX_MANIFEST_BYTES:
                raise ValueError(f"it has more than {_MAX_MANIFEST_BYTES} bytes")
            document = json.loads(content.decode("utf-8"))
        except FileNotFoundError:
            raise NgramModelNotFoundError(
                f"{folder} is not an n-gram model: it has no {MANIFEST_FILE}. If its build was interrupted, build it "
                "again."
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise BrokenNgramModelError(f"{path} cannot be read ({error}). Build the model again.") from None
        version = document.pop("format_version", None) if isinstance(document, dict) else None
        if version != FORMAT_VERSION:
            raise BrokenNgramModelError(
                f"{path} has format version {reprlib.repr(version)}; this version of superdraft reads "
                f"{FORMAT_VERSION}. Build the model again, or install the version that built it."
            )
        try:
            manifest: Manifest = _decode(cls, document, "manifest")
            if manifest.tokenizer.vocabulary_size > MAX_VOCABULARY_SIZE:
                raise ValueError(f"manifest.tokenizer.vocabulary_size is over {MAX_VOCABULARY_SIZE}")
        except ValueError as error:
            raise BrokenNgramModelError(f"{path} is damaged: {error}. Build the model again.") from None
        return manifest

    def verify_tokenizer(self, fingerprint: str) -> None:
        """Check that the model was built for the tokenizer with this fingerprint.

        Raises:
            TokenizerMismatchError: it was built for another tokenizer.
        """
        if fingerprint != self.tokenizer.fingerprint:
            raise TokenizerMismatchError(
                f"The n-gram model {self.name!r} was built for the tokenizer of {self.tokenizer.name!r} "
                f"({self.tokenizer.fingerprint[:12]}), but the language model has a different tokenizer "
                f"({fingerprint[:12]}). Build an n-gram model for it (superdraft ngram build), or use none."
            )

    def verify_binary(self, folder: Path, copy: BinaryIO | None = None) -> None:
        """Check the size and the SHA-256 of the binary.

        Args:
            folder: the model's folder.
            copy: file to write the checked bytes to; None: they are only checked.

        Raises:
            BrokenNgramModelError: the binary is missing, unreadable or different from what the manifest describes.
        """
        path = folder / BINARY_FILE
        try:
            with _open_file(path) as binary:
                size = os.fstat(binary.fileno()).st_size
                if size != self.binary_bytes:
                    problem = f"it has {size} bytes instead of {self.binary_bytes}"
                elif _sha256(binary, copy) != self.binary_sha256:
                    problem = "its SHA-256 differs from the manifest's"
                else:
                    return
        except OSError as error:
            problem = f"it cannot be read ({error.strerror})"
        raise BrokenNgramModelError(f"{path} is damaged: {problem}. Build or download the model {self.name!r} again.")


def _open_file(path: Path) -> BinaryIO:
    if not stat.S_ISREG(path.stat().st_mode):  # a device may have no end, and a pipe no writer
        raise OSError(errno.EINVAL, "not a regular file")
    return path.open("rb")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return _sha256(file)


def _sha256(file: BinaryIO, copy: BinaryIO | None = None) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        if copy is not None:
            copy.write(chunk)
    return digest.hexdigest()


def _decode(kind: Any, value: object, where: str) -> Any:
    """Convert parsed JSON to `kind`, a dataclass or a field's type; a ValueError names the first wrong field."""
    if isinstance(kind, types.UnionType):
        return None if value is None else _decode(typing.get_args(kind)[0], value, where)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is not a list")
        return tuple(_decode(typing.get_args(kind)[0], item, where) for item in value)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is not an object")
        members = {member.name: member for member in fields(kind)}
        if missing := [name for name, member in members.items() if member.default is MISSING and name not in value]:
            raise ValueError(f"{where} lacks {', '.join(missing)}")
        if surplus := sorted(set(value) - set(members)):
            raise ValueError(f"{where} has the unknown field {', '.join(surplus)}")
        return kind(**{name: _decode(members[name].type, item, f"{where}.{name}") for name, item in value.items()})  # type: ignore[operator]
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError(f"{where} is not of type {kind.__name__}")
    return value
