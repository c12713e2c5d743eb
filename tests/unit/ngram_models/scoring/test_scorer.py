import math
from itertools import permutations

import kenlm
import pytest
from support.ngram import END_OF_TEXT_IDS, VOCABULARY_SIZE, load_arpa, write_arpa

from superdraft.ngram_models.building.perplexity import HeldOutTail, measure_perplexity
from superdraft.ngram_models.scoring.scorer import KenLMScorer


class CountingModel:
    """A KenLM model that records the words it scores."""

    def __init__(self, model):
        self.model = model
        self.order = model.order
        self.words = []

    def BaseScore(self, in_state, word, out_state):  # noqa: N802 (KenLM's name)
        self.words.append(word)
        return self.model.BaseScore(in_state, word, out_state)

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __contains__(self, word):
        return word in self.model


@pytest.fixture
def model(tmp_path):
    return load_arpa(write_arpa(tmp_path))


def make_scorer(model):
    return KenLMScorer(model, vocabulary_size=VOCABULARY_SIZE, end_of_text_ids=END_OF_TEXT_IDS)


def ln(log10):
    return pytest.approx(log10 * math.log(10), rel=1e-5)


@pytest.mark.parametrize(
    ("context", "token_id", "log10"),
    [
        ([3, 4], 5, -0.03),  # a trigram
        ([6, 4], 5, -0.35),  # "6 4" is not in the model, so there is no back-off weight: the bigram "4 5"
        ([3, 4], 3, -0.15 - 0.3 - 0.7),  # back-off of "3 4", then of "4", then the unigram
        ([4, 5], 4, -0.05 - 0.45),  # back-off of "4 5", then the bigram "5 4"
        ([3], 6, -0.2 - 1.1),
        ([], 3, -0.7),  # an empty context is not the beginning of a text
        ([5], 0, -0.55),  # an end-of-text id is </s>
        ([5], 2, -0.55),  # and so is the other one
        ([2], 3, -0.1),  # a new text begins after an end of text: the bigram "<s> 3"
        ([5, 0, 3], 4, -0.02),  # the trigram "<s> 3 4"
        ([3, 4, 2], 5, -0.5 - 0.9),  # tokens before an end of text do not count as context
        ([3, 4], 7, -0.15 - 0.3 - 3.0),  # 7 is not in the corpus: <unk>
        ([3, 4], 1000, -0.15 - 0.3 - 3.0),  # nor is an id outside the tokenizer's vocabulary
        ([3, 1], 4, -0.8),  # <unk> is not part of any longer n-gram
    ],
)
def test_scores_equal_sums_computed_by_hand(model, context, token_id, log10):
    scorer = make_scorer(model)
    assert scorer.score([scorer.initial_state(context)], [[token_id]]) == [[ln(log10)]]


def test_initial_state_depends_on_the_last_tokens_only(model):
    scorer = make_scorer(model)
    assert scorer.order == 3
    assert scorer.initial_state([6, 6, 6, 3, 4]) == scorer.initial_state([3, 4])
    assert scorer.initial_state([2, 3, 4]) == scorer.initial_state([5, 3, 4])
    assert scorer.initial_state([3, 4]) != scorer.initial_state([4])


def test_states_follow_their_drafts(model):
    scorer = make_scorer(model)
    for draft in permutations([3, 4, 5, 6], 4):
        state, total = scorer.text_start_state(), 0.0
        for token_id in draft:
            # Advancing another draft in between must not change this draft's state.
            scorer.advance(scorer.initial_state([5]), 4)
            total += scorer.score([state], [[token_id]])[0][0]
            state = scorer.advance(state, token_id)
        assert total == ln(model.score(" ".join(map(str, draft)), bos=True, eos=False))


def test_advance_does_not_change_the_parent(model):
    scorer = make_scorer(model)
    parent = scorer.initial_state([3])
    before = scorer.score([parent], [[4]])
    children = [scorer.advance(parent, token_id) for token_id in (4, 5, 2)]
    assert len(set(children)) == 3
    assert parent == scorer.initial_state([3])
    assert scorer.score([parent], [[4]]) == before


def test_the_text_start_survives_drafts_that_pass_it(model):
    scorer = make_scorer(model)
    begin = scorer.advance(scorer.initial_state([5]), 0)
    scorer.advance(begin, 3)
    scorer.score([begin], [[3]])
    assert scorer.score([scorer.text_start_state()], [[3]]) == [[ln(-0.1)]]


def test_equal_states_with_one_candidate_list_are_scored_once(model):
    counting = CountingModel(model)
    scorer = make_scorer(counting)
    states = [scorer.initial_state([3, 4]), scorer.initial_state([3]), scorer.initial_state([6, 3, 4])]
    shared = [3, 4, 5]
    counting.words.clear()
    scores = scorer.score(states, [shared, shared, shared])
    assert counting.words == ["3", "4", "5"] * 2
    assert scores[0] == scores[2] != scores[1]


def test_equal_states_with_other_candidates_are_not_mixed_up(model):
    scorer = make_scorer(model)
    state = scorer.initial_state([3, 4])
    assert scorer.score([state, state], [[5], [3]]) == [[ln(-0.03)], [ln(-1.15)]]


def test_states_and_candidates_must_match(model):
    scorer = make_scorer(model)
    with pytest.raises(ValueError):
        scorer.score([scorer.text_start_state()], [[3], [4]])


def test_perplexity_restarts_at_texts_and_counts_unknown_tokens(model):
    # ln p: <s> 3, then the trigram, then the trigram, then "5 </s>" by back-off of "4 5"; then <unk> and its end.
    log10 = -0.1 - 0.02 - 0.03 + (-0.05 - 0.55) + (-0.5 - 3.0) - 1.0
    result = measure_perplexity(make_scorer(model), [[3, 4, 5, 0, 7, 2]])
    assert (result.num_tokens, result.num_unknown) == (6, 1)
    assert result.perplexity == pytest.approx(10 ** (-log10 / 6), rel=1e-5)


def test_perplexity_without_tokens_is_refused(model):
    with pytest.raises(ValueError, match="no tokens"):
        measure_perplexity(make_scorer(model), [])


@pytest.mark.parametrize(("num_held_out", "passed", "kept"), [(0, [1, 2, 3], []), (2, [1], [2, 3]), (9, [], [1, 2, 3])])
def test_the_last_sequences_are_held_out(num_held_out, passed, kept):
    sequences = HeldOutTail(iter([[1], [2], [3]]), num_held_out)
    assert list(sequences) == [[n] for n in passed]
    assert list(sequences.tail) == [[n] for n in kept]


def test_equal_kenlm_states_have_equal_hashes(model):
    scorer = make_scorer(model)
    first, second = scorer.initial_state([3, 4]), scorer.initial_state([3, 4])
    assert isinstance(first, kenlm.State)
    assert first == second
    assert hash(first) == hash(second)
