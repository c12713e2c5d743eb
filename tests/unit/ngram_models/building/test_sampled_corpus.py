"""Shards of a sampled corpus: complete or absent, valid for their settings, locked by one process."""

import shutil
import struct
from collections import namedtuple

import pytest

from superdraft.ngram_models.building.sampled_corpus import ShardShape, open_sampled_corpus
from superdraft.ngram_models.errors import CorpusError

SHAPE = ShardShape(num_rows=2, row_tokens=3, vocabulary_size=65_536)
SETTINGS = {"seed": 1}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "samples"


def opened(folder, settings=SETTINGS, shape=SHAPE):
    return open_sampled_corpus(folder, settings, shape)


def rows(documents):
    return [list(document) for document in documents]


def test_the_first_rows_of_the_shards_are_the_corpus(folder):
    with opened(folder) as corpus:
        corpus.write(1, [7, 8, 9, 10, 11, 65_535])
        assert corpus.missing(3) == [0, 2]
        corpus.write(0, range(6))
        assert rows(corpus.read(3)) == [[0, 1, 2], [3, 4, 5], [7, 8, 9]]
        assert rows(corpus.read(4))[3] == [10, 11, 65_535]
    assert SHAPE.num_shards(3) == SHAPE.num_shards(4) == 2


def test_ids_above_16_bits_take_32(folder):
    wide = ShardShape(num_rows=1, row_tokens=3, vocabulary_size=65_537)
    with opened(folder, shape=wide) as corpus:
        corpus.write(0, [65_536, 1, 0])
        assert corpus.missing(1) == []
        assert rows(corpus.read(1)) == [[65_536, 1, 0]]
    assert (folder / "shard-000000.u32").read_bytes() == struct.pack("<3I", 65_536, 1, 0)


def test_half_a_32_bit_token_is_an_error(tmp_path):
    wide = ShardShape(num_rows=1, row_tokens=2, vocabulary_size=70_000)
    with opened(tmp_path, shape=wide) as corpus:
        (tmp_path / "shard-000000.u32").write_bytes(b"\0" * 7)
        with pytest.raises(CorpusError, match="does not contain 32-bit token ids"):
            list(corpus.read(1))


def test_existing_shards_are_kept_and_a_shard_of_the_wrong_size_counts_as_missing(folder):
    with opened(folder) as corpus:
        corpus.write(0, range(6))
        corpus.write(1, range(6))
    (folder / "shard-000001.u16").write_bytes(b"\0" * 10)
    (folder / "shard-000002.partial").write_bytes(b"\0" * 12)
    with opened(folder) as corpus:
        assert corpus.num_removed == 0
        assert corpus.missing(3) == [1, 2]
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize(
    ("settings", "shape"), [({"seed": 2}, SHAPE), (SETTINGS, ShardShape(3, 2, 65_536)), ({}, SHAPE)]
)
def test_other_settings_start_clean(folder, settings, shape):
    with opened(folder) as corpus:
        corpus.write(0, range(6))
    with opened(folder, settings, shape) as corpus:
        assert corpus.num_removed == 1
        assert corpus.missing(1) == [0]


def test_two_processes_cannot_sample_into_one_folder(folder):
    with opened(folder), pytest.raises(CorpusError, match="Another process is sampling"), opened(folder):
        pass


def test_a_folder_with_other_files_is_left_alone(folder):
    folder.mkdir()
    (folder / "thesis.txt").write_text("x")
    with pytest.raises(CorpusError, match=r"contains other files \(thesis\.txt\)"), opened(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_too_little_disk_space_is_reported(folder, monkeypatch):
    usage = namedtuple("usage", "free")
    with opened(folder) as corpus:
        monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage(24))
        corpus.check_disk_space(2)
        with pytest.raises(CorpusError, match="Free some space"):
            corpus.check_disk_space(3)
