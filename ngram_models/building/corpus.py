"""Corpus reader: yields documents, which are texts or token sequences.

A source is a file, a folder or `-` for the standard input. Of a folder, all files with the endings below are read in
sorted order, including those in sub-folders. Each ending may be followed by `.zst` or `.gz`.

- `.jsonl`: one JSON object per line. Its `text` field (or another field, if given) is a document.
- `.u16`, `.u32`: token ids as little-endian unsigned 16-bit or 32-bit numbers, without a header. Every `row_tokens` ids
  are one sequence.
- `.txt`, `.md`, and any other file that is named directly: UTF-8 text. Blank lines separate documents.

Files are streamed. A text longer than `MAX_TEXT_CHARACTERS` is split into pieces, so that a very long document does not
fill the memory. Only single lines of `.jsonl` files are held in memory as a whole.
"""

import io
import json
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TextIO

from superdraft.ngram_models.building.packed_files import PACKED_SUFFIXES, open_unpacked
from superdraft.ngram_models.errors import CorpusError

STANDARD_INPUT: Final = "-"
DEFAULT_ROW_TOKENS: Final = 65_536
DEFAULT_TEXT_FIELD: Final = "text"
MAX_TEXT_CHARACTERS: Final = 1 << 20
TOKEN_FILES: Final = {".u16": "H", ".u32": "I"}
"""Endings of token files, with their type codes for `array`."""
_ENDINGS = {".txt", ".md", ".jsonl", *TOKEN_FILES}
# Text and code compress to a third or less.
_PACKING_RATIO = 3
_BATCH_DOCUMENTS = 256

Encode = Callable[[list[str]], list[list[int]]]


class Text(NamedTuple):
    """A text document or a piece of one. `is_whole` is False if the document continues in the next piece."""

    characters: str
    is_whole: bool = True


Document = Text | Sequence[int]


class CorpusSize(NamedTuple):
    """Size of a corpus in bytes: as stored, and a lower estimate of its uncompressed size."""

    bytes_on_disk: int
    unpacked_bytes: int


def read_documents(
    sources: Iterable[str],
    *,
    row_tokens: int = DEFAULT_ROW_TOKENS,
    text_field: str = DEFAULT_TEXT_FIELD,
    on_read: Callable[[int], None] | None = None,
) -> Iterator[Document]:
    """Yield the documents of all sources.

    Args:
        sources: paths, or `-` for the standard input.
        row_tokens: tokens per sequence of a token file.
        text_field: the field of a `.jsonl` object that contains the text.
        on_read: called with the number of bytes that were read from a file, before decompression.

    Raises:
        CorpusError: a source is missing or cannot be read.
    """
    report = on_read or (lambda _num_bytes: None)
    for path in [path for source in sources for path in _files(source)]:
        if _ending(path) in TOKEN_FILES:
            yield from _read_rows(path, row_tokens, report)
        else:
            yield from _read_texts(path, text_field, report)


def encode_documents(documents: Iterable[Document], encode: Encode, end_of_text_id: int | None) -> Iterator[list[int]]:
    """Yield the token ids of every document.

    Args:
        documents: as `read_documents` yields them.
        encode: converts a list of texts to token ids, without adding special tokens.
        end_of_text_id: appended to every text that is whole; None if the tokenizer has no such id.
    """
    end = [] if end_of_text_id is None else [end_of_text_id]
    remaining = iter(documents)
    while batch := list(islice(remaining, _BATCH_DOCUMENTS)):
        encoded = iter(encode([document.characters for document in batch if isinstance(document, Text)]))
        for document in batch:
            if isinstance(document, Text):
                yield next(encoded) + (end if document.is_whole else [])
            else:
                yield list(document)


def corpus_size(sources: Iterable[str]) -> CorpusSize | None:
    """Total size of all sources, or None if the standard input is among them.

    Raises:
        CorpusError: a source is missing.
    """
    on_disk, unpacked = 0, 0
    for path in [path for source in sources for path in _files(source)]:
        if path == STANDARD_INPUT:
            return None
        size = Path(path).stat().st_size
        on_disk += size
        unpacked += size * (_PACKING_RATIO if Path(path).suffix.lower() in PACKED_SUFFIXES else 1)
    return CorpusSize(on_disk, unpacked)


def _files(source: str) -> Sequence[str]:
    path = Path(source)
    if source == STANDARD_INPUT or path.is_file():
        return [source]
    if not path.exists():
        raise CorpusError(f"The corpus {source} does not exist.")
    files = sorted(str(file) for file in path.rglob("*") if file.is_file() and _ending(str(file)) in _ENDINGS)
    if not files:
        endings = ", ".join(sorted(_ENDINGS))
        raise CorpusError(f"The folder {source} has no file that ends in {endings} (optionally with .zst or .gz).")
    return files


def _ending(path: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in PACKED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _open(path: str, report: Callable[[int], None]) -> BinaryIO:
    return sys.stdin.buffer if path == STANDARD_INPUT else open_unpacked(path, report)


def _read_texts(path: str, text_field: str, report: Callable[[int], None]) -> Iterator[Text]:
    try:
        with _open(path, report) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="\n") as lines:
            if _ending(path) == ".jsonl":
                yield from _jsonl_texts(path, lines, text_field)
            else:
                yield from _blocks_of_lines(lines)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x}).") from None
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error}.") from None


def _blocks_of_lines(lines: TextIO) -> Iterator[Text]:
    """Yield documents separated by blank lines, without leading blank lines and trailing line ends."""
    block: list[str] = []
    num_characters, is_new_line = 0, True
    while line := lines.readline(MAX_TEXT_CHARACTERS):
        is_blank = is_new_line and not line.strip()
        is_new_line = line.endswith("\n")
        if block and is_blank:
            yield Text("".join(block).rstrip("\n"))
            block, num_characters = [], 0
        elif not is_blank:
            if num_characters + len(line) > MAX_TEXT_CHARACTERS:
                yield Text("".join(block), is_whole=False)
                block, num_characters = [], 0
            block.append(line.removesuffix("\n").removesuffix("\r") + "\n" if is_new_line else line)
            num_characters += len(line)
    if block:
        yield Text("".join(block).rstrip("\n"))


def _jsonl_texts(path: str, lines: Iterable[str], text_field: str) -> Iterator[Text]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise CorpusError(f"{path}, line {number}: not a JSON object.") from None
        text = row.get(text_field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise CorpusError(
                f'{path}, line {number}: not a JSON object with a "{text_field}" string '
                "(--text-field names another field)."
            )
        if text:
            yield from _pieces(_without_lone_surrogates(text))


def _pieces(text: str) -> Iterator[Text]:
    start = 0
    while len(text) - start > MAX_TEXT_CHARACTERS:
        end = start + MAX_TEXT_CHARACTERS
        # Cut after a line end if there is one: a cut inside a word gives tokens that do not occur in real text.
        end = text.rfind("\n", start, end) + 1 or end
        yield Text(text[start:end], is_whole=False)
        start = end
    yield Text(text[start:])


def _without_lone_surrogates(text: str) -> str:
    """Replace unpaired UTF-16 surrogates, which JSON can contain but tokenizers reject."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _read_rows(path: str, row_tokens: int, report: Callable[[int], None]) -> Iterator[Sequence[int]]:
    type_code = TOKEN_FILES[_ending(path)]
    item_bytes = array(type_code).itemsize
    try:
        with _open(path, report) as binary:
            while data := binary.read(row_tokens * item_bytes):
                if len(data) % item_bytes:
                    raise CorpusError(
                        f"{path} does not contain {8 * item_bytes}-bit token ids: its size is not a multiple of "
                        f"{item_bytes} bytes."
                    )
                row = array(type_code, data)
                if sys.byteorder == "big":
                    row.byteswap()
                yield row
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error}.") from None
