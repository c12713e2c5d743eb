"""Reading a corpus as token sequences.

A source is a file, a folder (its files with the endings below, in sorted order, sub-folders included) or `-` for the
standard input. Any ending may be followed by `.zst` or `.gz`.

- `.jsonl`: one JSON object a line, its `text` field is a document.
- `.u16`: token ids as little-endian unsigned 16-bit numbers, without a header; every `row_tokens` of them are a
sequence.
- `.txt`, `.md` and any other file named directly: UTF-8 text, documents separated by blank lines.

A document of text ends with an end-of-text token. A sequence of a token file is taken as it is: it may hold several
texts and its last one may be cut off.
"""

import gzip
import io
import json
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import zstandard

from superdraft.ngram_models.errors import CorpusError

STANDARD_INPUT: Final = "-"
DEFAULT_ROW_TOKENS: Final = 65_536
_COMPRESSED = {".zst", ".gz"}
_ENDINGS = {".txt", ".md", ".jsonl", ".u16"}
# Enough for a tokenizer to use all cores, little enough to stay in memory.
_DOCUMENTS_A_BATCH = 256
_READ_BYTES = 1 << 17

Encode = Callable[[list[str]], list[list[int]]]


def read_sequences(
    sources: Iterable[str], *, encode: Encode, end_of_text_id: int | None, row_tokens: int = DEFAULT_ROW_TOKENS
) -> Iterator[list[int]]:
    """The token sequences of all sources, one at a time.

    Args:
        sources: paths, or `-`.
        encode: token ids of each text of a list, without special tokens added.
        end_of_text_id: put behind every document of text; None: the tokenizer has none.
        row_tokens: tokens of a sequence of a token file.

    Raises:
        CorpusError: a source is missing or cannot be read.
    """
    end = [] if end_of_text_id is None else [end_of_text_id]
    for source in sources:
        for path in _files(source):
            if _ending(path) == ".u16":
                yield from _read_rows(path, row_tokens)
            else:
                documents = _read_documents(path)
                while batch := list(islice(documents, _DOCUMENTS_A_BATCH)):
                    for token_ids in encode(batch):
                        yield token_ids + end


def _files(source: str) -> Sequence[str]:
    path = Path(source)
    if source == STANDARD_INPUT or path.is_file():
        return [source]
    if not path.exists():
        raise CorpusError(f"The corpus {source} does not exist.")
    files = sorted(str(file) for file in path.rglob("*") if file.is_file() and _ending(str(file)) in _ENDINGS)
    if not files:
        endings = ", ".join(sorted(_ENDINGS))
        raise CorpusError(f"The folder {source} has no file that ends in {endings} (or these with .zst or .gz).")
    return files


def _ending(path: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _open(path: str) -> BinaryIO:
    if path == STANDARD_INPUT:
        return sys.stdin.buffer
    suffix = Path(path).suffix.lower()
    if suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdFile(path), buffer_size=_READ_BYTES))
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return Path(path).open("rb")


class _ZstdFile(io.RawIOBase):
    """The frames of a `.zst` file, one after another.

    zstandard's own reader takes a truncated file for a shorter one.
    """

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("rb")  # noqa: SIM115 (closed in close)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._decoded = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._decoded:
            data = self._compressed or self._file.read(_READ_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("it is truncated")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._decoded = memoryview(self._frame.decompress(data))
            self._compressed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        num_bytes = min(len(buffer), len(self._decoded))
        buffer[:num_bytes] = self._decoded[:num_bytes]
        self._decoded = self._decoded[num_bytes:]
        return num_bytes

    def close(self) -> None:
        self._file.close()
        super().close()


def _read_documents(path: str) -> Iterator[str]:
    read = _jsonl_documents if _ending(path) == ".jsonl" else _text_documents
    try:
        with _open(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="\n") as lines:
            yield from read(path, lines)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x}).") from None
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise CorpusError(f"{path} cannot be read: {error}.") from None


def _text_documents(path: str, lines: Iterable[str]) -> Iterator[str]:  # noqa: ARG001 (the readers' common form)
    document: list[str] = []
    for line in lines:
        if line.strip():
            document.append(line.rstrip("\r\n"))
        elif document:
            yield "\n".join(document)
            document = []
    if document:
        yield "\n".join(document)


def _jsonl_documents(path: str, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise CorpusError(f"{path}, line {number}: not a JSON object.") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise CorpusError(f'{path}, line {number}: not a JSON object with a "text" string.')
        if row["text"]:
            yield _without_lone_surrogates(row["text"])


def _without_lone_surrogates(text: str) -> str:
    """JSON can spell halves of UTF-16 pairs, which are no characters and which tokenizers refuse."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _read_rows(path: str, row_tokens: int) -> Iterator[list[int]]:
    try:
        with _open(path) as binary:
            while data := binary.read(2 * row_tokens):
                if len(data) % 2:
                    raise CorpusError(f"{path} has an odd number of bytes: it does not hold 16-bit token ids.")
                row = array("H", data)
                if sys.byteorder == "big":
                    row.byteswap()
                yield row.tolist()
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise CorpusError(f"{path} cannot be read: {error}.") from None
