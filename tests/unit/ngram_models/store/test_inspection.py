import json
import math

import pytest
from support.ngram import FINGERPRINT, VOCABULARY_SIZE, write_tiny_model

from superdraft.ngram_models.errors import BrokenNgramModelError, NgramModelNotFoundError, TokenizerMismatchError
from superdraft.ngram_models.store.inspection import top_continuations, verify_model
from superdraft.ngram_models.store.manifest import BINARY_FILE, MANIFEST_FILE
from superdraft.ngram_models.store.registry import open_scorer


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tiny"


@pytest.fixture
def manifest(folder):
    return write_tiny_model(folder)


def test_the_best_continuations_come_first_with_their_probabilities(folder, manifest):
    best = top_continuations(open_scorer(folder, manifest), manifest, [3, 4], 2)
    assert [token_id for token_id, _ in best] == [5, 3]
    # By hand: 3 4 -> 5 is a trigram; the probability of 3 uses the back-off weights of "3 4" and "4".
    assert [probability for _, probability in best] == pytest.approx([10**-0.03, 10 ** (-0.15 - 0.3 - 0.7)])


def test_ends_of_text_are_one_continuation_and_unknown_tokens_are_left_out(folder, manifest):
    everything = top_continuations(open_scorer(folder, manifest), manifest, [5], VOCABULARY_SIZE)
    assert sorted(token_id for token_id, _ in everything) == [0, 3, 4, 5, 6]
    assert math.fsum(probability for _, probability in everything) < 1 + 1e-6


def test_a_whole_model_passes_every_check(folder, manifest):
    sentences = list(verify_model(folder, FINGERPRINT))
    assert len(sentences) == 4
    assert f"{manifest.binary_bytes:,} bytes" in sentences[1]


def test_the_tokenizer_is_checked_if_one_is_given(folder, manifest):
    assert len(list(verify_model(folder))) == 3
    with pytest.raises(TokenizerMismatchError, match="'tiny' was built for the tokenizer of 'toy'"):
        list(verify_model(folder, "b" * 64))


def test_damage_is_reported_after_the_checks_that_passed(folder, manifest):
    (folder / BINARY_FILE).write_bytes((folder / BINARY_FILE).read_bytes()[:-1] + b"x")
    checks = verify_model(folder)
    assert next(checks) == "The manifest can be read."
    with pytest.raises(BrokenNgramModelError, match="SHA-256"):
        next(checks)


def test_a_wrong_order_is_reported(folder, manifest):
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"order": 4}))
    with pytest.raises(BrokenNgramModelError, match="has order 3, but its manifest says 4"):
        list(verify_model(folder))


def test_a_folder_without_a_manifest_is_not_a_model(tmp_path):
    with pytest.raises(NgramModelNotFoundError):
        list(verify_model(tmp_path))
