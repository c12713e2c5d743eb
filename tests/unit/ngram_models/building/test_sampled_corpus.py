"""Shards of a sampled corpus: complete or absent, valid for their settings, locked by one process."""

import shutil
from collections import namedtuple

import pytest

from superdraft.ngram_models.building.sampled_corpus import open_sampled_corpus
from superdraft.ngram_models.errors import CorpusError

SETTINGS = {"seed": 1}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "samples"


def opened(folder, settings=SETTINGS):
    return open_sampled_corpus(folder, settings)


def rows(documents):
    return [list(document) for document in documents]


def test_the_first_rows_of_the_shards_are_the_corpus(folder):
    with opened(folder) as corpus:
        corpus.write(1, [7, 8, 9, 10, 11, 65_536])
        assert corpus.missing(3) == [0, 2]
        corpus.write(0, range(6))
        assert rows(corpus.read(1, 3)) == [[0, 1, 2], [3, 4, 5]]
        assert rows(corpus.read(2, 3))[2:] == [[7, 8, 9], [10, 11, 65_536]]


def test_half_a_32_bit_token_is_an_error(tmp_path):
    with opened(tmp_path) as corpus:
        corpus.write(0, range(6))
        (shard,) = tmp_path.glob("shard-*")
        shard.write_bytes(b"\0" * 7)
        with pytest.raises(CorpusError, match="does not contain 32-bit token ids"):
            list(corpus.read(1, 3))


def test_existing_shards_are_kept_and_unfinished_ones_removed(folder):
    with opened(folder) as corpus:
        corpus.write(0, range(6))
        corpus.write(1, range(6))
    (shard,) = folder.glob("shard-*-000001.u32")
    shard.rename(shard.with_suffix(".partial"))
    with opened(folder) as corpus:
        assert corpus.num_removed == 0
        assert corpus.missing(3) == [1, 2]
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize("settings", [{"seed": 2}, {}, {"seed": 1, "top_p": 1}])
def test_other_settings_start_clean(folder, settings):
    with opened(folder) as corpus:
        corpus.write(0, range(6))
    with opened(folder, settings) as corpus:
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
        monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage(48))
        corpus.check_disk_space(12)
        with pytest.raises(CorpusError, match="Free some space"):
            corpus.check_disk_space(13)
