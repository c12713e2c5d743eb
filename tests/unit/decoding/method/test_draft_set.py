"""The whole method without a model, compared with the plain-loop oracle; invariants of draft sets."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.oracle import OracleResult, oracle_answer, run_oracle

from superdraft.decoding.method.draft_set import Children, Draft, DraftSet, TokenAppender
from superdraft.decoding.method.ranking import rank
from superdraft.decoding.method.scoring import cut, interpolate, tempered_logprobs
from superdraft.decoding.method.selection import PAPER, RULES
from superdraft.decoding.method.superposition import draft_weights

VOCAB = 12
# Two tokens share a text and one is a prefix of another, so that different token sequences can have the same text.
TOKEN_BYTES = (b"a", b"b", b"ab", b"a", b" c", b" d", b"e", b"f", b"g", b"h", b"", b"")
SPECIAL = 10
EOS = 11


def text_of(tokens: list[int]) -> bytes:
    return b"".join(TOKEN_BYTES[token] for token in tokens)


class TableNgram:
    """A bigram table: probability of x after the last token; missing means no support."""

    def __init__(self, table: dict[tuple[int, int], float]) -> None:
        self.table = table

    def __call__(self, tokens: list[int], x: int) -> float:
        return self.table.get((tokens[-1] if tokens else -1, x), 0.0)


EXTEND = TokenAppender(TOKEN_BYTES, frozenset({EOS}))


def advance(drafts: DraftSet, token_ids: list[int], logprobs: np.ndarray, ln_p_f: np.ndarray, k: int) -> DraftSet:
    """One step by the paper's rule; all drafts share the candidates."""
    num = len(drafts.alive)
    return PAPER.select(drafts, Children.of(drafts.alive, [token_ids] * num, [logprobs] * num, ln_p_f), EXTEND, k)


def weights_of(drafts: DraftSet) -> list[float]:
    return draft_weights([draft.logprob for draft in drafts.alive])


def ranked(drafts: DraftSet, k: int) -> list[Draft]:
    return rank(drafts, k, PAPER)


def run_product(logits, ngram, *, k, m, tau, alpha, penalty) -> tuple[DraftSet, list[list[float]]]:
    drafts = DraftSet()
    weights = []
    for step, row in enumerate(logits):
        if drafts.is_done:
            break
        if step > 0:
            weights.append(weights_of(drafts))
        candidates = cut(torch.tensor([row], dtype=torch.float32), m, torch.tensor([SPECIAL]))
        token_ids = candidates.token_ids[0].tolist()
        ngram_logprobs = None
        if ngram is not None:
            probs = [[ngram(list(draft.token_ids), x) for x in token_ids] for draft in drafts.alive]
            with np.errstate(divide="ignore"):
                ngram_logprobs = np.log(np.array(probs))
        scores = interpolate(tempered_logprobs(candidates.logits, tau), ngram_logprobs, alpha, penalty)
        drafts = advance(drafts, token_ids, candidates.logprobs[0], scores, k)
    return drafts, weights


# Multiples of 1/64 are exact in float32, and distinct within a row: both sides get the same numbers, without ties.
distinct_row = st.lists(st.integers(-400, 400), min_size=VOCAB, max_size=VOCAB, unique=True).map(
    lambda row: [value / 64 for value in row]
)
tables = st.dictionaries(
    st.tuples(st.integers(-1, VOCAB - 1), st.integers(0, VOCAB - 1)),
    st.floats(1e-6, 1.0),
    max_size=80,
)


@settings(max_examples=400, deadline=None)
@given(
    logits=st.lists(distinct_row, min_size=1, max_size=6),
    table=st.none() | tables,
    k=st.integers(1, 5),
    m=st.integers(1, 30),
    tau=st.sampled_from([0.06, 0.3, 1.0, 2.5]),
    alpha=st.sampled_from([0.0, 0.3, 0.54, 1.0]),
    penalty=st.sampled_from([0.0, 3.0, 200.0]),
)
def test_equals_the_oracle(logits, table, k, m, tau, alpha, penalty):
    ngram = None if table is None else TableNgram(table)
    settings_ = {"k": k, "m": m, "tau": tau, "alpha": alpha, "penalty": penalty}
    expected = run_oracle(logits, ngram, **settings_, eos={EOS}, suppressed={SPECIAL}, text_of=text_of)
    got, weights = run_product(logits, ngram, **settings_)
    assume(not expected.tied)
    assert_same(got, weights, expected)
    answer = oracle_answer(expected, k, text_of)
    means = [round(d.score / max(d.length, 1), 6) for d in (*expected.alive, *expected.finished)]
    if len(set(means)) == len(means):
        assert [list(draft.token_ids) for draft in ranked(got, k)] == [draft.tokens for draft in answer]


def assert_same(got: DraftSet, weights: list[list[float]], expected: OracleResult) -> None:
    for ours, theirs in ((got.alive, expected.alive), (got.finished, expected.finished)):
        assert [list(draft.token_ids) for draft in ours] == [draft.tokens for draft in theirs]
        assert [draft.logprob for draft in ours] == pytest.approx([draft.score for draft in theirs], abs=1e-5)
        assert [draft.num_scored for draft in ours] == [draft.length for draft in theirs]
    assert len(weights) == len(expected.weights)
    for ours, theirs in zip(weights, expected.weights, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    logits=st.lists(distinct_row, min_size=1, max_size=6),
    table=st.none() | tables,
    k=st.integers(1, 5),
    m=st.integers(1, 30),
)
def test_invariants_hold_at_every_step(logits, table, k, m):
    ngram = None if table is None else TableNgram(table)
    for steps in range(1, len(logits) + 1):
        drafts, weights = run_product(logits[:steps], ngram, k=k, m=m, tau=0.5, alpha=0.5, penalty=200.0)
        assert len(drafts.alive) <= k
        assert len(drafts.finished) <= k
        assert len({draft.text for draft in drafts.alive}) == len(drafts.alive)
        assert all(SPECIAL not in draft.token_ids and EOS not in draft.token_ids for draft in drafts.alive)
        for gamma in weights:
            assert sum(gamma) == pytest.approx(1.0)
            assert min(gamma) >= 0
        shown = ranked(drafts, k)
        assert 1 <= len(shown) <= k
        assert len({draft.text for draft in shown}) == len(shown)
        assert all(draft.finish_reason in ("stop", "length") for draft in shown)


def test_a_hand_worked_step():
    """Two drafts, two tokens, a bigram that prefers another token for each: each draft takes its own."""
    drafts = DraftSet((Draft((4,), b" c", -1.0, 1, (-1.0,)), Draft((5,), b" d", -1.5, 1, (-1.5,))))
    lm = np.log([0.5, 0.5])
    ngram = np.log([[0.9, 0.1], [0.2, 0.8]])
    scores = interpolate(lm, ngram, alpha=0.5, penalty=200)
    after = advance(drafts, [6, 7], lm, scores, 2)
    # -1 + (ln .5 + ln .9)/2 = -1.399; -1.5 + (ln .5 + ln .8)/2 = -1.958; -1 + (ln .5 + ln .1)/2 = -2.498
    assert [draft.token_ids for draft in after.alive] == [(4, 6), (5, 7)]
    assert [draft.logprob for draft in after.alive] == pytest.approx([-1.39925, -1.95815], abs=1e-5)
    # gamma = e^-1.39925 / (e^-1.39925 + e^-1.95815)
    assert weights_of(after) == pytest.approx([0.63618, 0.36382], abs=1e-4)
    assert after.alive[0].token_logprobs == pytest.approx((-1.0, np.log(0.5)))


def test_a_draft_without_any_support_pays_the_penalty_and_keeps_its_order():
    lm = np.log([0.7, 0.3])
    none, some = [-np.inf, -np.inf], [-np.inf, np.log(0.4)]
    scores = interpolate(lm, np.array([none, some]), alpha=0.5, penalty=10)
    assert scores[0].tolist() == pytest.approx((0.5 * lm - 10).tolist())
    assert scores[1].tolist() == [-np.inf, pytest.approx(0.5 * np.log(0.3) + 0.5 * np.log(0.4))]


def test_a_forbidden_token_stays_forbidden_for_every_alpha():
    for alpha in (0.5, 1.0):
        scores = interpolate(np.array([[0.0, -np.inf]]), np.log([[0.2, 0.8], [0.5, 0.5]]), alpha, penalty=200)
        assert np.isneginf(scores[:, 1]).all()
        assert np.isfinite(scores[:, 0]).all()


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_support_for_a_forbidden_token_alone_is_no_support(alpha):
    """Otherwise the draft would have no child at all."""
    lm, ngram = np.array([[np.log(0.7), -np.inf]]), np.array([[-np.inf, np.log(0.4)]])
    scores = interpolate(lm, ngram, alpha, penalty=10)
    assert scores[0].tolist() == [pytest.approx((1 - alpha) * np.log(0.7) - 10), -np.inf]


def test_alpha_one_ignores_the_language_model_except_for_the_cut():
    scores = interpolate(np.array([-1.0, -np.log(50)]), np.log([[0.2, 0.8]]), alpha=1, penalty=200)
    assert scores[0].tolist() == pytest.approx(np.log([0.2, 0.8]).tolist())


def test_of_equal_scores_the_better_parent_comes_first_then_the_more_probable_token():
    drafts = DraftSet((Draft((4,), b" c", 0.0, 1, (0.0,)), Draft((5,), b" d", 0.0, 1, (0.0,))))
    after = advance(drafts, [6, 7], np.zeros(2), np.zeros((2, 2)), 3)
    assert [draft.token_ids for draft in after.alive] == [(4, 6), (4, 7), (5, 6)]


def test_a_finished_draft_does_not_exclude_an_alive_one_with_the_same_text():
    drafts = DraftSet(
        (Draft((4,), b" c", -1.0, 1, (-1.0,)),), finished=(Draft((4, 6), b" ce", -0.5, 2, (0.0, 0.0), "stop"),)
    )
    after = advance(drafts, [6], np.zeros(1), np.zeros((1, 1)), 2)
    assert [draft.text for draft in after.alive] == [b" ce"]


def test_weights_survive_scores_far_below_zero():
    assert draft_weights([-5000.0, -5000.0]) == [0.5, 0.5]
    assert draft_weights([-1.0, -5000.0]) == [1.0, 0.0]


def test_ranking_is_by_score_per_token_without_empty_drafts():
    ended = (Draft((), b"", -0.01, 1, (-0.01,), "stop"), Draft((4,), b" c", -1.0, 2, (-0.5,), "stop"))
    drafts = DraftSet((Draft((4, 6), b" ce", -0.8, 2, (0.0, 0.0)), Draft((5, 6), b" de", -3.0, 2, (0.0, 0.0))), ended)
    assert [(draft.text, draft.finish_reason) for draft in ranked(drafts, 3)] == [
        (b" ce", "length"),
        (b" c", "stop"),
        (b" de", "length"),
    ]
    assert [draft.text for draft in ranked(DraftSet((), ended[:1]), 3)] == [b""]


def test_ranking_shows_a_text_once():
    alive = (Draft((2,), b"ab", -0.8, 1, (0.0,)), Draft((0, 1), b"ab", -3.0, 2, (0.0, 0.0)))
    assert [draft.token_ids for draft in ranked(DraftSet(alive), 3)] == [(2,)]


def test_the_paper_s_rule_keeps_drafts_that_differ_in_white_space_only():
    drafts = DraftSet((Draft(text=b"a\n", logprob=-1.0), Draft(text=b"a\n\n", logprob=-2.0)))
    assert [draft.text for draft in rank(drafts, 2, PAPER)] == [b"a\n", b"a\n\n"]
    assert [draft.text for draft in rank(drafts, 2, RULES["distinct"])] == [b"a\n"]
