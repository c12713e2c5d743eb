"""Reading KenLM's trie binaries, KenLM itself being the judge."""

import os
import random
import struct
import subprocess

import kenlm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kenlm_trie import ngrams_of, write_trie
from support.ngram import load_arpa, write_arpa

from superdraft.ngram_models.errors import BuildToolMissingError, NoNgramTablesError
from superdraft.ngram_models.kenlm_trie import read_trie
from superdraft.ngram_models.tools import find_tools

KINDS = {
    "trie": {},
    "quantised": {"quantisation": (5, 3)},
    "array": {"array_bits": 22},
    "quantised array": {"quantisation": (8, 8), "array_bits": 22},
}


def sentences_of(rng, num_sentences=60, num_tokens=12, max_length=15):
    def tokens():
        return [str(rng.randrange(3, 3 + num_tokens)) for _ in range(rng.randrange(max_length))]

    return [["<s>", *tokens(), "</s>"] for _ in range(num_sentences)]


def assert_equals_kenlm(path):
    """Every n-gram has the weights that KenLM finds for it, and KenLM finds it."""
    model, trie = load_arpa(path), read_trie(path)
    assert len(trie.ngrams) == model.order
    names = sorted(trie.words, key=trie.words.get)
    texts = [(name,) for name in names]
    for length, ngrams in enumerate(trie.ngrams, 1):
        if length > 1:
            words = ngrams.words.tolist()
            texts = [(*texts[context], names[word]) for context, word in zip(ngrams.contexts, words, strict=True)]
        assert len(set(texts)) == len(texts)
        for text, logprob, backoff in zip(texts, ngrams.logprobs, ngrams.backoffs, strict=True):
            state = state_after(model, text[:-1])
            found = model.BaseFullScore(state, text[-1], kenlm.State())
            assert (found.log_prob, found.ngram_length) == (pytest.approx(logprob, rel=1e-6), length)
            stranger = word_that_never_follows(model, text, names)
            if length == model.order:
                assert backoff == 0
            elif stranger is not None:
                longer, shorter = (
                    model.BaseScore(state_after(model, t), stranger, kenlm.State()) for t in (text, text[1:])
                )
                assert backoff == pytest.approx(longer - shorter, abs=3e-6)
    return trie


def state_after(model, words):
    state = kenlm.State()
    if words and words[0] == "<s>":
        model.BeginSentenceWrite(state)
        words = words[1:]
    else:
        model.NullContextWrite(state)
    for word in words:
        next_state = kenlm.State()
        model.BaseScore(state, word, next_state)
        state = next_state
    return state


def word_that_never_follows(model, words, names):
    """One for which the model backs off from `words`; what that costs is their back-off weight."""
    state = state_after(model, words)
    for name in names:
        if model.BaseFullScore(state, name, kenlm.State()).ngram_length <= len(words):
            return name
    return None


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("order", [2, 3, 4, 6])
def test_it_holds_what_kenlm_finds(tmp_path, order, options):
    rng = random.Random(order)
    ngrams = ngrams_of(sentences_of(rng), order, rng)
    write_trie(tmp_path / "model.bin", ngrams, **options)
    trie = assert_equals_kenlm(tmp_path / "model.bin")
    assert sum(len(level.words) for level in trie.ngrams) == len(ngrams)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["3", "4", "55", "<unk>"]), max_size=6), min_size=1, max_size=12),
    st.integers(2, 6),
    st.none() | st.tuples(st.integers(1, 12), st.integers(2, 9)),
    st.none() | st.integers(0, 64),
    st.randoms(use_true_random=False),
)
def test_it_holds_what_kenlm_finds_in_any_small_model(
    tmp_path_factory, sentences, order, quantisation, array_bits, rng
):
    path = tmp_path_factory.mktemp("trie") / "model.bin"
    ngrams = ngrams_of([["<s>", *sentence, "</s>"] for sentence in sentences], order, rng)
    write_trie(path, ngrams, quantisation=quantisation, array_bits=array_bits)
    assert_equals_kenlm(path)


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    rng = random.Random(1)
    path = tmp_path_factory.mktemp("model") / "model.bin"
    write_trie(path, ngrams_of(sentences_of(rng), 4, rng), quantisation=(8, 8), array_bits=22)
    return path.read_bytes()


def refusal(tmp_path, content):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(NoNgramTablesError) as caught:
        read_trie(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "looked up on the host instead" in message
    return message


@pytest.mark.parametrize(
    ("offset", "changed", "what"),
    [
        (48, b"4", "of another format version than 5"),
        (34, b"incomplete\n", "cut off, unfinished or of another format version"),
        (0, b"MMAP", "is no KenLM binary"),
        (56, struct.pack("<f", 1.0), "a machine of another kind"),
        (80, struct.pack(">Q", 1), "a machine of another kind"),
        (88, b"\1", "its header is not whole"),
        (88, b"\xff", "its header is not whole"),
        (96, b"\0", "is probing hash tables;"),
        (96, b"\1", "is probing hash tables with rest costs;"),
        (96, b"\7", "is of the unknown kind 7;"),
        (100, b"\0", "without the texts of its words"),
        (104, b"\2", "of version 2 instead of 1"),
        (108, struct.pack("<Q", 10**15), "is cut off or damaged"),
    ],
)
def test_other_formats_are_named(tmp_path, binary, offset, changed, what):
    assert what in refusal(tmp_path, binary[:offset] + changed + binary[offset + len(changed) :])


def test_an_arpa_file_is_no_binary(tmp_path):
    assert "is no KenLM binary (an ARPA file is none)" in refusal(tmp_path, write_arpa(tmp_path).read_bytes())


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NoNgramTablesError, match=r"no\.bin cannot be read \(No such file"):
        read_trie(tmp_path / "no.bin")


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, binary):
    for length in [*range(0, 200, 7), *range(200, len(binary), 101), len(binary) - 1]:
        refusal(tmp_path, binary[:length])


def test_words_that_are_not_a_models_are_refused(tmp_path, binary):
    assert "its words are not all there" in refusal(tmp_path, binary.replace(b"</s>\0", b"</S>\0"))


def test_damage_is_noticed_or_changes_weights_only(tmp_path, binary):
    """No byte leads to a crash or to n-grams that hang together wrongly."""
    rng = random.Random(2)
    path = tmp_path / "model.bin"
    path.write_bytes(binary)
    sizes = [len(level.words) for level in read_trie(path).ngrams]
    num_refused = 0
    for _ in range(300):
        damaged = bytearray(binary)
        damaged[rng.randrange(160, len(binary) - 100)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            trie = read_trie(path)
        except NoNgramTablesError:
            num_refused += 1
            continue
        assert [len(level.words) for level in trie.ngrams] == sizes
        for shorter, level in zip(trie.ngrams, trie.ngrams[1:], strict=False):
            assert np.all((level.contexts >= 0) & (level.contexts < len(shorter.words)))
            assert np.all((level.words >= 0) & (level.words < sizes[0]))
    assert num_refused > 20


def real_tools():
    try:
        return find_tools()
    except BuildToolMissingError:
        return None


@pytest.fixture(scope="module", params=[(2, 12), (3, 12), (6, 3), (6, 60)], ids=str)
def arpa(request, tmp_path_factory):
    """An ARPA file that lmplz made; of 60 tokens no text repeats, so that one holds no 6-grams."""
    order, num_tokens = request.param
    path = tmp_path_factory.mktemp("arpa") / "model.arpa"
    corpus = "".join(" ".join(words[1:-1]) + "\n" for words in sentences_of(random.Random(order), 150, num_tokens))
    command = [real_tools().lmplz, "-o", str(order), "--discount_fallback", "-S", "64M", "--prune", "0", "0"]
    command += ["1"] * (order > 2)
    path.write_bytes(subprocess.run(command, input=corpus.encode(), capture_output=True, check=True).stdout)
    return path


@pytest.mark.skipif(real_tools() is None, reason="KenLM's lmplz is not installed here: make lmplz builds it")
@pytest.mark.parametrize(
    "options",
    ["", "-a 22", "-a 3", "-q 8", "-q 2 -b 3", "-q 17 -b 18", "-q 8 -b 8 -a 22", "-q 1 -b 2 -a 64", "-q 7 -b 4 -a 1"],
)
def test_it_reads_what_the_real_tools_write(tmp_path, arpa, options):
    path = tmp_path / "model.bin"
    pack = [real_tools().build_binary, "-T", f"{tmp_path}{os.sep}", *options.split(), "trie", arpa, path]
    subprocess.run(pack, capture_output=True, check=True)
    assert_equals_kenlm(path)
