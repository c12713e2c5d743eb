import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import support
from support.ngram import FINGERPRINT, tiny_manifest, write_tiny_model

from superdraft.ngram_models.errors import (
    BrokenNgramModelError,
    NgramModelNotFoundError,
    TokenizerMismatchError,
)
from superdraft.ngram_models.store.manifest import BINARY_FILE, MANIFEST_FILE, Manifest, Tuning, file_sha256
from superdraft.ngram_models.store.registry import find_ngram_model, list_ngram_models, load_ngram_model

PLAIN_TRIE = Path(support.__path__[0]) / "kenlm_tries" / "plain.bin"


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def folder(home):
    folder = home / "ngram" / "tiny"
    write_tiny_model(folder)
    return folder


def edit_manifest(folder, **changes):
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(name_or_path, home=None, fingerprint=FINGERPRINT):
    return load_ngram_model(name_or_path, fingerprint=fingerprint, home=home)


def test_a_manifest_reads_back_as_it_was_written(tmp_path):
    manifest = tiny_manifest(tuning=Tuning(alpha=0.5, tau=0.1, candidates_per_draft=9), ngram_counts=(7, 5, 2))
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_FILE]


def test_a_manifest_from_before_counts_were_recorded_is_read(folder):
    path = folder / MANIFEST_FILE
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "ngram_counts"})
    )
    assert load(folder).manifest.ngram_counts is None


def test_models_load_by_name_and_by_path(folder, home):
    by_name = load("tiny", home)
    assert by_name.folder == folder
    assert by_name.scorer.order == 3
    assert by_name.manifest.corpus.num_tokens == 12
    assert load(folder).manifest == by_name.manifest


def test_the_users_own_model_hides_a_shipped_one(home):
    write_tiny_model(home / "ngram" / "smollm2-135m")
    assert find_ngram_model("smollm2-135m", home) == home / "ngram" / "smollm2-135m"


def test_a_model_for_another_tokenizer_is_refused(folder):
    with pytest.raises(TokenizerMismatchError, match=r"'tiny' was built for the tokenizer of 'toy' \(aaaaaaaaaaaa\)"):
        load(folder, fingerprint="b" * 64)


def test_a_truncated_binary_never_reaches_kenlm(folder):
    data = (folder / BINARY_FILE).read_bytes()
    (folder / BINARY_FILE).write_bytes(data[:-1])
    with pytest.raises(BrokenNgramModelError, match=f"{len(data) - 1} bytes instead of {len(data)}"):
        load(folder)


def test_a_flipped_bit_is_found(folder):
    data = bytearray((folder / BINARY_FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / BINARY_FILE).write_bytes(data)
    with pytest.raises(BrokenNgramModelError, match="SHA-256"):
        load(folder)


def test_a_missing_binary_is_reported(folder):
    (folder / BINARY_FILE).unlink()
    with pytest.raises(BrokenNgramModelError, match=r"model\.bin is damaged: it cannot be read"):
        load(folder)


@pytest.mark.parametrize("name", [BINARY_FILE, MANIFEST_FILE])
@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/dev/zero"), os.mkfifo])
def test_devices_and_pipes_are_not_read(folder, name, make):
    edit_manifest(folder, binary_bytes=0)
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(BrokenNgramModelError, match=r"cannot be read \(.*not a regular file"):
        load(folder)


def test_a_whole_binary_that_is_not_a_model_is_reported(folder):
    binary = folder / BINARY_FILE
    binary.write_bytes(b"not a model\n")
    edit_manifest(folder, binary_bytes=12, binary_sha256=file_sha256(binary))
    with pytest.raises(BrokenNgramModelError, match="damaged: it is neither a KenLM binary"):
        load(folder)


def test_a_manifest_of_another_binary_is_reported(folder):
    edit_manifest(folder, order=6)
    with pytest.raises(BrokenNgramModelError, match="has order 3, but its manifest says 6"):
        load(folder)


def test_a_folder_without_a_manifest_is_not_a_model(folder):
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(NgramModelNotFoundError, match=r"no manifest\.json"):
        load(folder)


def test_an_unknown_format_version_is_reported(folder):
    edit_manifest(folder, format_version=2)
    with pytest.raises(BrokenNgramModelError, match="format version 2; this version of superdraft reads 1"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "6"}, "manifest.order is not of type int"),
        ({"order": True}, "manifest.order is not of type int"),
        ({"prune": 1}, "manifest.prune is not a list"),
        ({"prune": [0, None]}, "manifest.prune is not of type int"),
        ({"corpus": {"description": "x"}}, "manifest.corpus lacks num_tokens, num_documents"),
        ({"tokenizer": None}, "manifest.tokenizer is not an object"),
        ({"surprise": 1}, "unknown field surprise"),
        (
            {"tokenizer": {"name": "x", "fingerprint": "y", "vocabulary_size": 10**12, "end_of_text_ids": []}},
            "vocabulary_size is over 4000000",
        ),
        ({"name": "x" * 2**20}, "it has more than 1048576 bytes"),
    ],
)
def test_a_damaged_manifest_names_the_field(folder, changes, message):
    edit_manifest(folder, **changes)
    with pytest.raises(BrokenNgramModelError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\xff",
        "[" * 100_000,
        '{"format_version": ' + "[" * 500 + "]" * 500 + "}",
        '{"format_version": ' + "9" * 4000 + "}",
    ],
    ids=lambda text: repr(text[:22]),
)
def test_a_manifest_that_is_not_a_json_object_is_reported(folder, text):
    (folder / MANIFEST_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(BrokenNgramModelError, match=r"manifest\.json") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(folder)) + 300


def test_an_unknown_name_lists_the_known_ones(folder, home):
    with pytest.raises(NgramModelNotFoundError, match=r"'teeny'.*Known models: .*tiny"):
        load("teeny", home)


def test_a_file_is_not_a_model(folder):
    with pytest.raises(NgramModelNotFoundError, match="is a file; an n-gram model is a folder"):
        load(folder / BINARY_FILE)


def test_the_list_shows_broken_models_and_leaves_unfinished_builds_out(folder, home):
    write_tiny_model(home / "ngram" / "broken")
    edit_manifest(home / "ngram" / "broken", format_version=9)
    write_tiny_model(home / "ngram" / ".half.x.partial")
    (home / "ngram" / "empty").mkdir()
    listed = {model.name: model for model in list_ngram_models(home)}
    assert {"broken", "tiny"} <= set(listed)
    assert not {".half.x.partial", "empty"} & set(listed)
    assert listed["tiny"].manifest.order == 3
    assert "format version 9" in listed["broken"].problem


def test_the_home_folder_is_the_variable_or_the_cache(monkeypatch, tmp_path, folder, home):
    monkeypatch.setenv("SUPERDRAFT_HOME", str(home))
    assert find_ngram_model("tiny") == folder
    monkeypatch.setenv("SUPERDRAFT_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(NgramModelNotFoundError):
        find_ngram_model("tiny")


def put_trie(folder, binary):
    """Make this binary the folder's, with a manifest that matches."""
    path = folder / BINARY_FILE
    path.write_bytes(binary)
    edit_manifest(folder, order=4, binary_bytes=len(binary), binary_sha256=file_sha256(path))


def test_a_binary_made_to_mislead_kenlm_never_reaches_it(folder):
    binary = bytearray(PLAIN_TRIE.read_bytes())
    binary[248:256] = b"\xff" * 8  # where the first children of the first unigram are
    put_trie(folder, binary)
    with pytest.raises(BrokenNgramModelError, match=r"model\.bin is damaged: it has 1-grams that point outside"):
        load(folder)


TRUNCATED = """
import sys
from pathlib import Path
from superdraft.ngram_models.store.registry import load_ngram_model

scorer = load_ngram_model(sys.argv[1], fingerprint=sys.argv[2]).scorer
with (Path(sys.argv[1]) / "model.bin").open("r+b") as binary:
    binary.truncate(0)
print(scorer.score([scorer.initial_state([3, 4])], [[5]]))
"""


def test_a_model_in_use_may_be_truncated_in_place(folder):
    put_trie(folder, PLAIN_TRIE.read_bytes())
    expected = load(folder).scorer
    command = [sys.executable, "-c", TRUNCATED, str(folder), FINGERPRINT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert done.stdout.strip() == str(expected.score([expected.initial_state([3, 4])], [[5]]))


def test_where_no_file_can_be_in_memory_the_copy_is_a_temporary_file(folder, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    put_trie(folder, PLAIN_TRIE.read_bytes())
    scorer = load(folder).scorer
    assert scorer.score([scorer.initial_state([3])], [[4]])[0][0] < 0
