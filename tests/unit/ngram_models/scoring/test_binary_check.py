"""Binaries whose numbers lead out of the file. KenLM would read there, which ends the process."""

import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import support
from support.ngram import TINY_ARPA

from superdraft.ngram_models.scoring.binary_check import check_binary
from superdraft.ngram_models.store.manifest import BINARY_FILE
from superdraft.ngram_models.store.registry import find_ngram_model

# The shipped model's parts, from its header: order 6, quantised with 7 and 4 bits, compressed pointers.
COUNTS = (46011, 2861380, 2871988, 801297, 306450, 110415)
KIND_AT, COUNTS_AT, WORDS_AT = 96, 108, 160
QUANTISED_AT = WORDS_AT + 8 * (1 + COUNTS[0])
UNIGRAMS_AT = QUANTISED_AT + 8 + 4 * (5 * 2**7 + 4 * 2**4)
BIGRAMS_AT = UNIGRAMS_AT + 16 * (COUNTS[0] + 2)

# Small models of order 4, made by build_binary: plain, quantised, with compressed pointers, with both.
TRIES = sorted((Path(support.__path__[0]) / "kenlm_tries").glob("*.bin"))


@pytest.fixture(scope="module")
def shipped():
    return (find_ngram_model("smollm2-135m") / BINARY_FILE).read_bytes()


def changed(shipped, offset, numbers, *values):
    data = bytearray(shipped)
    struct.pack_into(numbers, data, offset, *values)
    return bytes(data)


def test_the_shipped_model_passes(shipped):
    check_binary(shipped)


def test_arpa_text_passes():
    check_binary(TINY_ARPA.encode())


@pytest.mark.parametrize(
    ("offset", "numbers", "value", "message"),
    [
        (KIND_AT, "<I", 0, "not a trie"),
        (KIND_AT, "<I", 6, "not a trie"),
        (88, "<B", 1, "has order 1; the lowest is 2"),
        (COUNTS_AT, "<Q", 2**63, "which 29882919 bytes cannot hold"),
        (COUNTS_AT, "<Q", 4_000_000, "ends after 29882919 bytes, but its header announces more"),
        (WORDS_AT, "<Q", COUNTS[0] + 1, "has 46012 words, but 46011 unigrams"),
        (QUANTISED_AT + 1, "<B", 26, "values of 26 and 4 bits"),
        (UNIGRAMS_AT + 8, "<Q", 2**40, "1-grams that point outside the 2-grams"),
        (UNIGRAMS_AT + 16 * 1000 + 8, "<Q", 0, "1-grams that point outside the 2-grams"),
        (UNIGRAMS_AT + 16 * COUNTS[0] + 8, "<Q", COUNTS[1] + 1, "1-grams that point outside the 2-grams"),
        (BIGRAMS_AT + 8, "<Q", 1, "2-grams whose compressed pointers are out of order"),
        (BIGRAMS_AT + 16, "<Q", 2**60, "2-grams whose compressed pointers are out of order"),
    ],
)
def test_a_number_that_leads_out_of_the_file_is_found(shipped, offset, numbers, value, message):
    with pytest.raises(ValueError, match=message):
        check_binary(changed(shipped, offset, numbers, value))


def test_every_n_gram_is_looked_at(shipped):
    """Bits set to 1 anywhere in the n-grams of an order make some pointer larger than the next one."""
    rng = np.random.default_rng(0)
    for offset in rng.integers(BIGRAMS_AT + 100_000, len(shipped) * 8 // 10, 12):
        with pytest.raises(ValueError, match="point outside"):
            check_binary(changed(shipped, offset, "<QQ", 2**64 - 1, 2**64 - 1))


@pytest.mark.parametrize("size", [0, 50, 100, 120, 1000, 1_000_000, 20_000_000])
def test_the_beginning_of_a_binary_is_refused(shipped, size):
    with pytest.raises(ValueError, match=r"ends after|neither|cannot hold"):
        check_binary(shipped[:size])


def test_arpa_text_may_not_announce_more_than_it_can_have():
    with pytest.raises(ValueError, match="announces 100000008 n-grams"):
        check_binary(TINY_ARPA.replace("ngram 2=5", "ngram 2=99999999").encode())


@pytest.mark.parametrize("path", TRIES, ids=lambda path: path.stem)
def test_every_kind_of_trie_passes(path):
    check_binary(path.read_bytes())


QUERY = """
import random, sys
import kenlm

for path in sys.argv[1:]:
    try:
        model = kenlm.Model(path)
    except (OSError, RuntimeError):
        continue
    words = random.Random(0).choices("01234567", k=400)
    state = kenlm.State()
    model.NullContextWrite(state)
    for word in words:
        following = kenlm.State()
        model.BaseScore(state, word, following)
        state = following
"""


def test_no_query_of_a_damaged_binary_that_passes_ends_the_process(tmp_path):
    rng = random.Random(0)
    passed, num_refused = [], 0
    for number in range(600):
        data = bytearray(rng.choice(TRIES).read_bytes())
        for _ in range(rng.choice((1, 3, 20))):
            at, size = rng.randrange(88, len(data) - 8), rng.choice((1, 4, 8))
            data[at : at + size] = rng.choice((b"\xff" * size, bytes(size), rng.randbytes(size)))
        try:
            check_binary(bytes(data))
        except ValueError:
            num_refused += 1
        else:
            passed.append(tmp_path / f"{number}.bin")
            passed[-1].write_bytes(data)
    assert min(len(passed), num_refused) > 100
    done = subprocess.run([sys.executable, "-c", QUERY, *map(str, passed)], capture_output=True, check=False)
    assert done.returncode == 0, done.returncode
