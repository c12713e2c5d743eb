"""Scores from hash tables on a device, KenLM's own being the measure."""

import math
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kenlm_trie import ngrams_of, write_trie
from support.ngram import END_OF_TEXT_IDS, FINGERPRINT, tiny_manifest, write_tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from superdraft.decoding.ngram_tables import NgramTables
from superdraft.ngram_models import scorer as scorer_module
from superdraft.ngram_models.errors import BrokenNgramModelError, NoNgramTablesError
from superdraft.ngram_models.hashed_ngrams import NO_KEY, hash_ngrams
from superdraft.ngram_models.kenlm_trie import Ngrams, read_trie
from superdraft.ngram_models.manifest import BINARY_FILE, Manifest, TokenizerIdentity, file_sha256
from superdraft.ngram_models.registry import find_ngram_model, open_scorer
from superdraft.ngram_models.scorer import KenLMScorer
from superdraft.ngram_models.vocabulary import WordTable

VOCABULARY_SIZE = 16
NUM_TOKENS = VOCABULARY_SIZE + 3  # a model's output may have more rows
KINDS = [{}, {"quantisation": (5, 3)}, {"array_bits": 22}, {"quantisation": (8, 8), "array_bits": 22}]


def write_model(folder, ngrams, **options):
    folder.mkdir(exist_ok=True)
    binary = folder / BINARY_FILE
    write_trie(binary, ngrams, **options)
    manifest = tiny_manifest(
        order=max(map(len, ngrams)),
        tokenizer=TokenizerIdentity("toy", FINGERPRINT, VOCABULARY_SIZE, END_OF_TEXT_IDS),
        binary_sha256=file_sha256(binary),
        binary_bytes=binary.stat().st_size,
    )
    manifest.write(folder)
    return manifest


def toy_ngrams(order, seed=0):
    """Of texts of the tokens 3 to 11; the others are unknown words, which some texts hold too."""
    rng = random.Random(seed)
    words = [*map(str, range(3, 12)), "<unk>"]
    return ngrams_of([["<s>", *rng.choices(words, k=rng.randrange(12)), "</s>"] for _ in range(80)], order, rng)


def toy_scorer(folder, order, *, unknown="unk", **options):
    return open_scorer(folder, write_model(folder, toy_ngrams(order), **options), unknown=unknown)


def nodes_after(tables, scorer, token_ids):
    """The tables' state after a prompt, shape [order - 1]."""
    words = scorer.context_words(token_ids)
    return tables.state_after(torch.tensor([-1] * (scorer.order - 1 - len(words)) + words))


def assert_same(scores, expected):
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)


def step(tables, scorer, nodes, states, rows):
    """Score rows of shared candidates, shape [R, m], with both and compare; returns the tables' scores and children."""
    scores, children = tables.score(nodes, torch.tensor(rows))
    assert scores.dtype == torch.float64
    for row_scores, row_states, row in zip(scores, states, rows, strict=True):
        assert_same(row_scores, scorer.score(row_states, [row] * len(row_states)))
    return scores, children


def walk(tables, scorer, prompts, choose, num_steps, candidates):
    """Let drafts grow, k = 3 in each row, and compare scores and states all the way.

    Args:
        prompts: one a row.
        choose: given the scores of one draft's candidates, the index of its next token.
        candidates: given the states of a row's drafts, makes the candidates.

    Returns:
        The texts, and how many words the longest context of a state had.
    """
    texts = [[list(prompt) for _ in range(3)] for prompt in prompts]
    states = [[scorer.initial_state(prompt)] * 3 for prompt in prompts]
    nodes = torch.stack([nodes_after(tables, scorer, prompt).expand(3, -1) for prompt in prompts])
    longest = 0
    for _ in range(num_steps):
        longest = max(longest, int((nodes >= 0).sum(-1).max()))
        rows = [candidates(row_nodes) for row_nodes in nodes]
        scores, children = step(tables, scorer, nodes, states, rows)
        chosen = [[choose(row) for row in row_scores] for row_scores in scores]
        nodes = torch.stack(
            [torch.stack([children[r, k, i] for k, i in enumerate(row)]) for r, row in enumerate(chosen)]
        )
        for r, row in enumerate(chosen):
            for k, index in enumerate(row):
                texts[r][k].append(rows[r][index])
                states[r][k] = scorer.advance(states[r][k], rows[r][index])
                assert torch.equal(nodes[r, k], nodes_after(tables, scorer, texts[r][k]))
    return texts, longest


@pytest.mark.parametrize("options", KINDS, ids=["trie", "quantised", "array", "quantised array"])
@pytest.mark.parametrize("order", [2, 3, 4, 6])
def test_scores_and_states_follow_kenlms(tmp_path, order, options):
    scorer = toy_scorer(tmp_path / "toy", order, **options)
    tables = NgramTables(scorer.tables(), "cpu", num_tokens=NUM_TOKENS)
    rng = random.Random(1)

    def choose(scores):
        # Most steps follow the model, so long n-grams are found; the others go anywhere: ends, unknown words.
        return int(scores.argmax()) if rng.random() < 0.75 else rng.randrange(NUM_TOKENS)

    def candidates(_):
        return rng.sample(range(NUM_TOKENS), NUM_TOKENS)

    known = next(words for words in toy_ngrams(order) if len(words) == order and not {"<s>", "<unk>"} & set(words[:-1]))
    prompts = [[], [4, 0, 5], [0], [int(word) for word in known[:-1]]]
    texts, longest = walk(tables, scorer, prompts, choose, 60, candidates)
    assert {0, 2, 1, NUM_TOKENS - 1} < {token_id for row in texts for text in row for token_id in text}
    assert longest == order - 1


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["3", "4", "5", "<unk>"]), max_size=6), min_size=1, max_size=12),
    st.lists(st.integers(0, 7), max_size=30),
    st.integers(2, 6),
    st.sampled_from(["unk", "zero"]),
    st.randoms(use_true_random=False),
)
def test_scores_equal_kenlms_in_any_small_model(tmp_path_factory, sentences, token_ids, order, unknown, rng):
    folder = tmp_path_factory.mktemp("model")
    ngrams = ngrams_of([["<s>", *sentence, "</s>"] for sentence in sentences], order, rng)
    scorer = open_scorer(folder, write_model(folder, ngrams), unknown=unknown)
    tables = NgramTables(scorer.tables(), "cpu")
    state, nodes = scorer.initial_state([]), nodes_after(tables, scorer, [])
    for token_id in token_ids:
        _, children = step(tables, scorer, nodes[None, None], [[state]], [list(range(8))])
        state, nodes = scorer.advance(state, token_id), children[0, 0, token_id]
    step(tables, scorer, nodes[None, None], [[state]], [list(range(8))])


def test_each_draft_may_have_candidates_of_its_own(tmp_path):
    scorer = toy_scorer(tmp_path / "toy", 4)
    tables = NgramTables(scorer.tables(), "cpu")
    prompts = [[3, 4], [5], [0, 6]]
    candidates = [[4, 5, 0], [6, 7, 1], [8, 2, 9]]
    nodes = torch.stack([nodes_after(tables, scorer, prompt) for prompt in prompts])[None]
    scores, children = tables.score(nodes, torch.tensor([candidates]))
    assert_same(scores[0], scorer.score([scorer.initial_state(prompt) for prompt in prompts], candidates))
    for k, prompt in enumerate(prompts):
        for i, token_id in enumerate(candidates[k]):
            assert torch.equal(children[0, k, i], nodes_after(tables, scorer, [*prompt, token_id]))


def test_unknown_tokens_have_no_support_if_asked_for(tmp_path):
    scorer = toy_scorer(tmp_path / "toy", 3, unknown="zero")
    assert any(words[-1] == "<unk>" and len(words) == 3 for words in toy_ngrams(3))
    tables = NgramTables(scorer.tables(), "cpu", num_tokens=NUM_TOKENS)
    nodes = torch.stack([nodes_after(tables, scorer, [a, b]) for a in range(3, 12) for b in range(3, 12)])[None]
    scores, _ = tables.score(nodes, torch.tensor([[1, 15, NUM_TOKENS - 1, 3, 0]]))
    assert torch.isneginf(scores[..., :3]).all()
    assert torch.isfinite(scores[..., 3:]).all()


def test_an_order_without_n_grams_changes_nothing(tmp_path):
    arrays = toy_scorer(tmp_path / "toy", 3).tables()
    trie = read_trie(tmp_path / "toy" / BINARY_FILE)
    nothing = Ngrams(*(np.empty(0, np.int64),) * 2, *(np.empty(0, np.float32),) * 2)
    longer = hash_ngrams(replace(trie, ngrams=(*trie.ngrams, nothing)), WordTable(VOCABULARY_SIZE, END_OF_TEXT_IDS))
    contexts = torch.randint(len(trie.words), (1, 50, 3), generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(VOCABULARY_SIZE)[None]
    tables, longer_tables = NgramTables(arrays, "cpu"), NgramTables(longer, "cpu")
    scores, children = tables.score(tables.state_after(contexts[..., 1:]), tokens)
    longer_scores, longer_children = longer_tables.score(longer_tables.state_after(contexts), tokens)
    assert longer_tables.order == 4
    assert torch.equal(scores, longer_scores)
    assert torch.equal(children, longer_children[..., :2])


def test_every_n_gram_has_a_node_within_the_window(tmp_path):
    ngrams = toy_ngrams(4)
    arrays = toy_scorer(tmp_path / "toy", 4).tables()
    used = np.flatnonzero(arrays.keys != NO_KEY)
    assert len(used) == sum(len(words) > 1 for words in ngrams)
    assert len(np.unique(arrays.keys[used])) == len(used)
    starts = [*arrays.starts, len(arrays.keys)]
    for start, end, size in zip(starts, starts[1:], arrays.sizes, strict=False):
        nodes = used[(used >= start) & (used < end)]
        away = (
            nodes
            - start
            - [(int(key) * arrays.hash_factor + 2**63) % 2**64 - 2**63 for key in arrays.keys[nodes]] % size
        )
        assert away.min() >= 0
        assert away.max() < arrays.window
    assert len(arrays.keys) == len(arrays.logprobs) == len(arrays.backoffs) > max(used) + 1


class Operations(TorchDispatchMode):
    """Notes what is run, but for views."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.devices = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if all(value.alias_info is None for value in operation._schema.returns):
            self.names.append(operation.name())
            self.devices.add(result.device.type)
        return result


@pytest.mark.parametrize("order", [2, 3, 6])
def test_a_step_stays_on_the_device_and_is_20_operations(tmp_path, order):
    """On torch's device without data, nothing can be read back; whatever comes from the host has another device."""
    tables = NgramTables(toy_scorer(tmp_path / "toy", order).tables(), "meta")
    nodes = torch.empty(2, 3, order - 1, dtype=torch.int64, device="meta")
    with torch.inference_mode(), Operations() as operations:
        scores, children = tables.score(nodes, torch.empty(2, 9, dtype=torch.int64, device="meta"))
    assert len(operations.names) == 20
    with torch.inference_mode(), operations:
        after = tables.state_after(torch.empty(2, order - 1, dtype=torch.int64, device="meta"))
    assert operations.devices == {"meta"}
    assert (scores.shape, children.shape, after.shape) == ((2, 3, 9), (2, 3, 9, order - 1), (2, order - 1))


@pytest.mark.parametrize(
    ("token_ids", "words"),
    [
        ([], []),
        ([3], ["3"]),
        ([5, 3, 1], ["3", "<unk>"]),
        ([3, 0], ["<s>"]),
        ([2, 4], ["<s>", "4"]),
        ([0, 4, 5], ["4", "5"]),
        ([0, 2], ["<s>"]),
        ([4, 1000], ["4", "<unk>"]),
    ],
)
def test_context_words_are_those_that_the_state_depends_on(tmp_path, token_ids, words):
    scorer = toy_scorer(tmp_path / "toy", 3)
    numbers = read_trie(tmp_path / "toy" / BINARY_FILE).words
    assert scorer.context_words(token_ids) == [numbers[word] for word in words]


def test_tables_are_made_once_even_if_many_ask(tmp_path, monkeypatch):
    scorer, num_reads = toy_scorer(tmp_path / "toy", 3), []
    monkeypatch.setattr(scorer_module, "read_trie", lambda path: num_reads.append(path) or read_trie(path))
    with ThreadPoolExecutor(8) as pool:
        tables = set(map(id, pool.map(lambda _: scorer.tables(), range(32))))
    assert (len(tables), len(num_reads)) == (1, 1)


def test_tables_of_another_file_are_not_taken_for_the_models(tmp_path):
    scorer = toy_scorer(tmp_path / "toy", 3)
    write_model(tmp_path / "toy", toy_ngrams(3, seed=1))
    with pytest.raises(BrokenNgramModelError, match=r"SHA-256|bytes instead of"):
        scorer.tables()


def test_models_without_a_trie_are_refused_and_can_be_asked_all_the_same(tmp_path):
    write_tiny_model(tmp_path / "tiny")
    scorer = open_scorer(tmp_path / "tiny", Manifest.read(tmp_path / "tiny"))
    with pytest.raises(NoNgramTablesError, match="is no KenLM binary"):
        scorer.tables()
    assert math.isfinite(scorer.score([scorer.initial_state([3])], [[4]])[0][0])
    unnamed = KenLMScorer(scorer._model, vocabulary_size=8, end_of_text_ids=END_OF_TEXT_IDS)
    with pytest.raises(NoNgramTablesError, match="file is not known"):
        unnamed.tables()


def test_the_shipped_models_scores_equal_kenlms(tmp_path):
    folder = find_ngram_model("smollm2-135m", home=tmp_path)
    scorer = open_scorer(folder, Manifest.read(folder))
    arrays = scorer.tables()
    assert arrays.window <= 16
    tables = NgramTables(arrays, "cpu")
    keys = np.sort(arrays.keys)
    token_of = {int(word): token_id for token_id, word in enumerate(arrays.words)}
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)

    def continuations(nodes):
        """Tokens that make an n-gram with the longest context that has any."""
        for node in reversed(nodes.tolist()):
            start, end = np.searchsorted(keys, [node * arrays.num_words, (node + 1) * arrays.num_words])
            if node >= 0 and start < end:
                words = keys[rng.choices(range(start, end), k=20)] % arrays.num_words
                return [token_of[word] for word in words.tolist() if word in token_of]
        return []

    def candidates(row_nodes):
        # Those that follow a draft, those that end it, and any others.
        following = [token_id for nodes in row_nodes for token_id in continuations(nodes)]
        return [0, 2, *following, *rng.sample(range(49_152), 100)][:100]

    def choose(scores):
        return int(torch.multinomial(scores.exp(), 1, generator=generator))

    prompts = [[], [0], [rng.randrange(49_152) for _ in range(8)], [582, 282, 260]]
    texts, longest = walk(tables, scorer, prompts, choose, 40, candidates)
    assert longest == 5
    assert any(0 in text[1:] or 2 in text[1:] for row in texts for text in row)
