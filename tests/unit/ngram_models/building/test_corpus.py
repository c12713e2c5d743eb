import gzip
import io
import json
import struct
import sys

import pytest
import zstandard

from superdraft.ngram_models.building.corpus import (
    MAX_TEXT_CHARACTERS,
    Text,
    corpus_size,
    encode_documents,
    read_documents,
)
from superdraft.ngram_models.errors import CorpusError


def encode(texts):
    """Makes every character a token, so that sequences can be converted back to text."""
    return [[ord(char) for char in text] for text in texts]


def read(*sources, **options):
    return list(encode_documents(read_documents(map(str, sources), **options), encode, 0))


def texts(*sources):
    return ["".join(map(chr, sequence)).removesuffix("\0") for sequence in read(*sources)]


def write(path, data):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def test_blank_lines_separate_documents(tmp_path):
    path = write(tmp_path / "a.txt", "\n\nfirst line\nsecond line\r\n \t\nnext\n\n\n\nlast")
    assert texts(path) == ["first line\nsecond line", "next", "last"]


def test_every_text_document_gets_an_end_of_text_token(tmp_path):
    path = write(tmp_path / "a.txt", "a\n\nb")
    assert read(path) == [[97, 0], [98, 0]]
    assert list(encode_documents(read_documents([str(path)]), encode, None)) == [[97], [98]]


def test_more_documents_than_one_batch_stay_in_order(tmp_path):
    documents = [str(number) for number in range(600)]
    assert texts(write(tmp_path / "a.txt", "\n\n".join(documents))) == documents


def test_compressed_text_of_several_frames(tmp_path):
    compress = zstandard.ZstdCompressor().compress
    frames = write(tmp_path / "a.txt.zst", compress(b"one\n") + compress(b"\ntwo\n"))
    assert texts(frames) == ["one", "two"]
    assert texts(write(tmp_path / "b.txt.gz", gzip.compress("drei\n\nvier über".encode()))) == ["drei", "vier über"]


def test_gzip_members_may_be_padded_with_zeros(tmp_path):
    padded = gzip.compress(b"one\n") + bytes(300_000) + gzip.compress(b"\ntwo\n") + bytes(7)
    assert texts(write(tmp_path / "a.txt.gz", padded)) == ["one", "two"]
    assert texts(write(tmp_path / "b.txt.gz", b"")) == []


def test_jsonl_takes_the_text_field(tmp_path):
    lines = '{"text": "a\\nb", "id": 1}\n\n{"text": ""}\n{"text": "c\u2028d"}\n{"text": "\\ud83d"}\n'
    assert texts(write(tmp_path / "a.jsonl", lines)) == ["a\nb", "c\u2028d", "?"]


@pytest.mark.parametrize("line", ["{", "[1]", '{"body": "x"}', '{"text": 1}'])
def test_the_error_gives_the_number_of_a_bad_jsonl_line_and_does_not_quote_it(tmp_path, line):
    path = write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n\n{line}\n')
    with pytest.raises(CorpusError, match=r"a\.jsonl, line 3: not a JSON object") as caught:
        read(path)
    assert "body" not in str(caught.value)


def test_token_files_hold_rows(tmp_path):
    data = struct.pack("<5H", 1, 258, 65535, 0, 7)
    path = write(tmp_path / "a.u16", data)
    assert read(path) == [[1, 258, 65535, 0, 7]]
    assert read(path, row_tokens=2) == [[1, 258], [65535, 0], [7]]
    packed = write(tmp_path / "b.u16.zst", zstandard.ZstdCompressor().compress(data))
    assert read(packed, row_tokens=3) == [[1, 258, 65535], [0, 7]]


def test_rows_do_not_depend_on_how_the_file_is_read(tmp_path):
    ids = list(range(50_000)) * 2
    data = struct.pack(f"<{len(ids)}H", *ids)
    compress = zstandard.ZstdCompressor().compress
    for path in (
        write(tmp_path / "a.u16", data),
        write(tmp_path / "b.u16.zst", compress(data[:70_001]) + compress(data[70_001:])),
        write(tmp_path / "c.u16.gz", gzip.compress(data)),
    ):
        rows = read(path, row_tokens=30_000)
        assert [len(row) for row in rows] == [30_000, 30_000, 30_000, 10_000]
        assert [token_id for row in rows for token_id in row] == ids


def test_half_a_token_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="does not contain 16-bit token ids: its size is not a multiple of 2 bytes"):
        read(write(tmp_path / "a.u16", b"\1\0\2"))


def test_folders_are_read_in_order_and_other_files_left_out(tmp_path):
    write(tmp_path / "sub" / "c.jsonl", '{"text": "third"}')
    write(tmp_path / "b.md", "second")
    write(tmp_path / "a.txt.gz", gzip.compress(b"first"))
    write(tmp_path / "picture.png", b"\x89PNG")
    assert texts(tmp_path) == ["first", "second", "third"]


def test_a_folder_without_a_corpus_is_an_error(tmp_path):
    write(tmp_path / "picture.png", b"\x89PNG")
    with pytest.raises(CorpusError, match="has no file that ends in"):
        read(tmp_path)


def test_standard_input_is_text(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfone\n\ntwo\n")))
    assert texts("-") == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"fine\n\n\xff", r"a\.txt is not UTF-8"),
        (
            "a.txt.gz",
            gzip.compress(b"a long enough text " * 50)[:-20],
            r"a\.txt\.gz cannot be read: the file is truncated",
        ),
        ("a.txt.gz", flipped(gzip.compress(bytes(range(256)) * 50)), r"a\.txt\.gz cannot be read: the file is damaged"),
        ("a.txt.gz", b"plain", r"a\.txt\.gz cannot be read"),
        ("a.txt.zst", b"plain", r"a\.txt\.zst cannot be read"),
        ("a.u16.zst", b"plain", r"a\.u16\.zst cannot be read"),
    ],
    ids=["not UTF-8", "truncated", "flipped", "no gzip", "no zstandard", "no tokens"],  # gzip's bytes hold the time
)
def test_damaged_files_are_named(tmp_path, name, data, message):
    with pytest.raises(CorpusError, match=message):
        read(write(tmp_path / name, data))


def test_a_truncated_zst_file_is_not_read_as_a_shorter_corpus(tmp_path):
    whole = zstandard.ZstdCompressor().compress(bytes(range(256)) * 2000)
    with pytest.raises(CorpusError, match="cannot be read"):
        read(write(tmp_path / "a.u16.zst", whole[:-50]))


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(CorpusError, match="nowhere does not exist"):
        read(tmp_path / "nowhere")


def test_another_field_can_be_the_text(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"body": "a", "text": "b"}\n')
    assert list(read_documents([str(path)], text_field="body")) == [Text("a")]
    with pytest.raises(CorpusError, match=r'"title" string \(--text-field names another'):
        list(read_documents([str(path)], text_field="title"))


LINE = "x" * 99 + "\n"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_very_long_document_is_split_after_lines(tmp_path, name):
    text = LINE * (2 * MAX_TEXT_CHARACTERS // 100 + 50) + "end"
    path = write(tmp_path / name, json.dumps({"text": text}) if name == "a.jsonl" else text)
    pieces = list(read_documents([str(path)]))
    assert "".join(piece.characters for piece in pieces) == text
    assert [piece.is_whole for piece in pieces] == [False, False, True]
    assert all(len(piece.characters) <= MAX_TEXT_CHARACTERS for piece in pieces)
    assert all(piece.characters.endswith("\n") for piece in pieces[:-1])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_very_long_line_is_split_too(tmp_path, name):
    text = "x" * (MAX_TEXT_CHARACTERS + 7)
    path = write(tmp_path / name, json.dumps({"text": text}) if name == "a.jsonl" else f"{text}\n\nnext")
    pieces = list(read_documents([str(path)]))
    assert pieces[:2] == [Text(text[:-7], is_whole=False), Text(text[-7:])]


def test_only_the_last_piece_ends_the_text(tmp_path):
    path = write(tmp_path / "a.txt", "x" * (MAX_TEXT_CHARACTERS + 1))
    first, last = read(path)
    assert first[-1] == ord("x")
    assert last == [ord("x"), 0]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_progress_adds_up_to_the_size_on_disk(tmp_path, name):
    data = b"some words\n\n" * 100_000
    pack = {"a.txt": bytes, "a.txt.gz": gzip.compress, "a.txt.zst": zstandard.ZstdCompressor().compress}[name]
    path = write(tmp_path / name, pack(data))
    seen = []
    documents = list(read_documents([str(path)], on_read=seen.append))
    assert len(documents) == 100_000
    size = corpus_size([str(path)])
    assert sum(seen) == size.bytes_on_disk == path.stat().st_size
    assert size.unpacked_bytes == size.bytes_on_disk * (1 if name == "a.txt" else 3)


def test_the_size_of_the_standard_input_is_unknown(tmp_path):
    assert corpus_size([str(write(tmp_path / "a.txt", "a")), "-"]) is None
