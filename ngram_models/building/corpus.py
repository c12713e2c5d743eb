"""Reading a corpus as documents: texts, or token sequences.

A source is a file, a folder (its files with the endings below, in sorted order, sub-folders included) or `-` for the
standard input. Any ending may be followed by `.zst` or `.gz`.

- `.jsonl`: one JSON object a line, its `text` field (or another one that is named) is a document.
- `.u16`, `.u32`: token ids as little-endian unsigned 16-bit or 32-bit numbers, without a header; every `row_tokens` of
them are a sequence.
- `.txt`, `.md` and any other file named directly: UTF-8 text, documents separated by blank lines.

Files are streamed. A text longer than `MAX_TEXT_CHARACTERS` comes in pieces, so that one endless document does not
fill the memory; only a line of a `.jsonl` file is held as a whole.
"""

import io
import json
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TextIO

import zstandard

from superdraft.ngram_models.building.packed_files import PACKED_SUFFIXES, open_unpacked
from superdraft.ngram_models.errors import CorpusError

STANDARD_INPUT: Final = "-"
DEFAULT_ROW_TOKENS: Final = 65_536
DEFAULT_TEXT_FIELD: Final = "text"
MAX_TEXT_CHARACTERS: Final = 1 << 20
TOKEN_FILES: Final = {".u16": "H", ".u32": "I"}
"""The endings of token files and their type codes in `array`."""
_ENDINGS = {".txt", ".md", ".jsonl", *TOKEN_FILES}
# Text and code shrink to a third or less.
_PACKING_RATIO = 3
_DOCUMENTS_A_BATCH = 256

Encode = Callable[[list[str]], list[list[int]]]


class Text(NamedTuple):
    """A document of text, or a piece of one. `is_whole` is False if the document goes on in the next piece."""

    characters: str
    is_whole: bool = True


Document = Text | Sequence[int]


class CorpusSize(NamedTuple):
    """Bytes of a corpus as it is, and about how many it has at least when it is unpacked."""

    bytes_on_disk: int
    unpacked_bytes: int


def read_documents(
    sources: Iterable[str],
    *,
    row_tokens: int = DEFAULT_ROW_TOKENS,
    text_field: str = DEFAULT_TEXT_FIELD,
    on_read: Callable[[int], None] | None = None,
) -> Iterator[Document]:
    """The documents of all sources, one at a time.

    Args:
        sources: paths, or `-`.
        row_tokens: tokens of a sequence of a token file.
        text_field: the field of a `.jsonl` row that holds its text.
        on_read: called with the number of bytes that were read from a file, packed ones as they are on disk.

    Raises:
        CorpusError: a source is missing or cannot be read.
    """
    report = on_read or (lambda _num_bytes: None)
    for path in [path for source in sources for path in _files(source)]:
        if _ending(path) in TOKEN_FILES:
            yield from _read_rows(path, row_tokens, report)
        else:
            yield from _read_texts(path, text_field, report)


def read_sequences(
    sources: Iterable[str],
    *,
    encode: Encode,
    end_of_text_id: int | None,
    row_tokens: int = DEFAULT_ROW_TOKENS,
    text_field: str = DEFAULT_TEXT_FIELD,
) -> Iterator[list[int]]:
    """The documents of all sources as token ids, one at a time.

    Args:
        sources: as in `read_documents`.
        encode: token ids of each text of a list, without special tokens added.
        end_of_text_id: put behind every document of text; None: the tokenizer has none.
        row_tokens: as in `read_documents`.
        text_field: as in `read_documents`.

    Raises:
        CorpusError: a source is missing or cannot be read.
    """
    documents = read_documents(sources, row_tokens=row_tokens, text_field=text_field)
    while batch := list(islice(documents, _DOCUMENTS_A_BATCH)):
        yield from encode_documents(batch, encode, end_of_text_id)


def encode_documents(documents: Iterable[Document], encode: Encode, end_of_text_id: int | None) -> Iterator[list[int]]:
    """Token ids of every document: of a text, those of `encode`, and an end-of-text token if it is whole."""
    documents = list(documents)
    encoded = iter(encode([document.characters for document in documents if isinstance(document, Text)]))
    end = [] if end_of_text_id is None else [end_of_text_id]
    for document in documents:
        if isinstance(document, Text):
            yield next(encoded) + (end if document.is_whole else [])
        else:
            yield list(document)


def corpus_size(sources: Iterable[str]) -> CorpusSize | None:
    """The size of all sources; None if the standard input is among them.

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
        raise CorpusError(f"The folder {source} has no file that ends in {endings} (or these with .zst or .gz).")
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
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise CorpusError(f"{path} cannot be read: {error}.") from None


def _blocks_of_lines(lines: TextIO) -> Iterator[Text]:
    """Documents separated by blank lines. A line end before the first or behind the last line is left out."""
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
        # Behind a line if there is one: a cut inside a word gives tokens that nobody writes.
        end = text.rfind("\n", start, end) + 1 or end
        yield Text(text[start:end], is_whole=False)
        start = end
    yield Text(text[start:])


def _without_lone_surrogates(text: str) -> str:
    """JSON can spell halves of UTF-16 pairs, which are no characters and which tokenizers refuse."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _read_rows(path: str, row_tokens: int, report: Callable[[int], None]) -> Iterator[Sequence[int]]:
    type_code = TOKEN_FILES[_ending(path)]
    item_bytes = array(type_code).itemsize
    try:
        with _open(path, report) as binary:
            while data := binary.read(row_tokens * item_bytes):
                if len(data) % item_bytes:
                    raise CorpusError(
                        f"{path} does not hold {8 * item_bytes}-bit token ids: its size is no multiple of {item_bytes}."
                    )
                row = array(type_code, data)
                if sys.byteorder == "big":
                    row.byteswap()
                yield row
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise CorpusError(f"{path} cannot be read: {error}.") from None
