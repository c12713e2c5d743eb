"""The prompt's own n-grams: counts that follow a document, against counts made anew and sums made by hand."""

import gc
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superdraft.ngram_models.scoring.counts import CountTable
from superdraft.ngram_models.scoring.in_context import DocumentCache, InContextScorer
from superdraft.ngram_models.scoring.mixture import UniformScorer

VOCABULARY_SIZE = 6
END = 0
PROMPTS = st.lists(st.integers(0, VOCABULARY_SIZE - 1), max_size=14)


def contexts_of(prompt, order):
    """Each token of a prompt that is no end of text, with the context in its own text."""
    context = []
    for token_id in prompt:
        if token_id == END:
            context = []
        else:
            yield tuple(context[len(context) - order + 1 :] if len(context) >= order else context), token_id
            context.append(token_id)


def counted(prompt, order):
    table = CountTable(order)
    for context, token_id in contexts_of(prompt, order):
        table.add(context, token_id)
    return table


def share_of(prompt, order, context, token_id):
    """The document's probability of a token, by the recursion and by counting in the prompt itself."""
    pairs = list(contexts_of(prompt, order))
    seen = [x for c, x in pairs if len(c) >= len(context) and (c[len(c) - len(context) :] == context)]
    if not context:
        return seen.count(token_id) / (len(seen) + 500)
    shorter = share_of(prompt, order, context[1:], token_id)
    if not seen:
        return shorter
    novelty = 2 * len(set(seen))
    return (seen.count(token_id) + novelty * shorter) / (len(seen) + novelty)


def make_scorer(documents, weight=0.5, background=None):
    return InContextScorer(background or UniformScorer(VOCABULARY_SIZE), weight, documents)


@given(st.lists(st.tuples(PROMPTS, st.integers(0, 3)), max_size=12), st.integers(1, 4), st.integers(0, 40))
def test_edited_counts_equal_counts_made_anew_and_leased_ones_never_change(prompts, order, max_tokens):
    documents = DocumentCache({END}, order=order, max_tokens=max_tokens)
    held = []
    for prompt, num_dropped in prompts:
        lease = documents.lease(prompt)
        held.append((prompt, lease))
        del lease, held[:num_dropped]
        for owned_prompt, owned in held:
            assert owned.counts == counted(owned_prompt, order)
            assert owned.counts.num_tokens == len(owned_prompt) - owned_prompt.count(END)
        assert documents.num_tokens <= max_tokens


@given(PROMPTS, PROMPTS)
def test_removing_what_was_added_leaves_no_trace(kept, added):
    table = counted(kept, 3)
    for context, token_id in contexts_of(added, 3):
        table.add(context, token_id)
    for context, token_id in contexts_of(added, 3):
        table.remove(context, token_id)
    assert table == counted(kept, 3)
    assert table.num_tokens == counted(kept, 3).num_tokens


def test_removing_what_was_never_added_is_an_error():
    with pytest.raises(KeyError):
        counted([1, 2], 3).remove((1,), 3)


@settings(max_examples=60)
@given(PROMPTS, PROMPTS, st.sampled_from([0.1, 0.5, 1.0]))
def test_scores_equal_the_formula_and_sum_to_one(prompt, draft, weight):
    scorer = make_scorer(DocumentCache({END}, order=3), weight)
    state = scorer.initial_state(prompt)
    for token_id in draft:
        state = scorer.advance(state, token_id)
    context = ()
    for token_id in [*prompt, *draft]:
        context = () if token_id == END else (*context, token_id)[-2:]
    own = [share_of(prompt, 3, context, token_id) for token_id in range(VOCABULARY_SIZE)]
    left = 1 - weight * math.fsum(own)
    (row,) = scorer.score([state], [range(VOCABULARY_SIZE)])
    assert row == pytest.approx([math.log(weight * p + left / VOCABULARY_SIZE) for p in own])
    assert math.fsum(map(math.exp, row)) == pytest.approx(1)


def test_a_repeated_phrase_wins_and_an_unseen_context_leaves_the_background_alone():
    scorer = make_scorer(DocumentCache({END}), 0.9)
    phrase = [1, 2, 3, 4, 5]
    state = scorer.initial_state([*phrase, *phrase, 1, 2, 3])
    (row,) = scorer.score([state], [range(VOCABULARY_SIZE)])
    assert row.index(max(row)) == 4
    assert math.exp(max(row)) > 0.4

    state = scorer.initial_state([1, 2])  # nothing followed 2 so far
    (row,) = scorer.score([state], [range(VOCABULARY_SIZE)])
    assert row == pytest.approx([-math.log(VOCABULARY_SIZE)] * VOCABULARY_SIZE, abs=0.02)


def test_tokens_that_the_document_lacks_keep_the_backgrounds_order():
    class Background(UniformScorer):
        def score(self, states, candidates):
            return [[-math.inf if token_id == 5 else -float(token_id) for token_id in row] for row in candidates]

    scorer = make_scorer(DocumentCache({END}), 0.5, Background(VOCABULARY_SIZE))
    (row,) = scorer.score([scorer.initial_state([1, 1, 1])], [[2, 3, 4, 5]])
    assert row[0] - row[1] == pytest.approx(1)
    assert row[1] - row[2] == pytest.approx(1)
    assert row[3] == -math.inf


def test_drafts_with_equal_states_share_a_row_and_others_do_not():
    scorer = make_scorer(DocumentCache({END}))
    prompt = [1, 2, 3, 1, 2]
    state, twin = scorer.initial_state(prompt), scorer.initial_state(list(prompt))
    assert state == twin
    assert hash(state) == hash(twin)
    other = scorer.advance(state, 3)
    assert other != state
    candidates = [1, 2, 3]
    rows = scorer.score([state, other, twin, state], [candidates, candidates, candidates, [3]])
    assert rows[0] is rows[2]
    assert rows[0] != rows[1]
    assert rows[3] == [rows[0][2]]


def test_states_of_other_documents_differ():
    scorer = make_scorer(DocumentCache({END}))
    assert scorer.initial_state([1, 2, 3, 3]) != scorer.initial_state([5, 4, 3, 3])


@pytest.fixture
def num_counted(monkeypatch):
    """How many tokens were added or removed so far."""
    calls = []
    for name in ("add", "remove"):
        plain = getattr(CountTable, name)

        def noted(table, context, token_id, plain=plain):
            calls.append(token_id)
            plain(table, context, token_id)

        monkeypatch.setattr(CountTable, name, noted)
    return calls


def test_a_key_press_costs_what_it_changed(num_counted):
    documents = DocumentCache({END})
    document = [1 + i * i % 5 for i in range(400)]
    documents.lease(document)
    assert len(num_counted) == 400
    table = documents.lease(document).counts
    for i in range(50):
        num_counted.clear()
        prompt = [*document, *([2, 3] * i), 1 + i % 5]  # its last token is another one each time
        lease = documents.lease(prompt)
        assert lease.counts is table
        assert len(num_counted) <= 4
        del lease


def test_a_running_sequence_makes_the_next_prompt_take_a_copy(num_counted):
    documents = DocumentCache({END})
    scorer = make_scorer(documents)
    document = [1 + i * i % 5 for i in range(400)]
    running = scorer.initial_state(document)
    before = scorer.score([running], [range(VOCABULARY_SIZE)])
    num_counted.clear()
    next_one = scorer.initial_state([*document, 2, 3])
    assert len(num_counted) == 2  # a copy, not a count of 402 tokens
    assert next_one.lease.counts is not running.lease.counts
    assert scorer.score([running], [range(VOCABULARY_SIZE)]) == before
    # As soon as nobody holds a document it is used again.
    freed = next_one.lease.counts
    del next_one
    assert scorer.initial_state([*document, 2, 4]).lease.counts is freed


def test_a_prompt_that_shares_little_does_not_take_a_document_apart(num_counted):
    documents = DocumentCache({END})
    first, second = [1, 2, *[3] * 50], [1, 2, *[4] * 50]
    documents.lease(first)
    documents.lease(second)
    num_counted.clear()
    documents.lease([*first, 5])
    documents.lease([*second, 5])
    assert len(num_counted) == 2


def test_forgotten_documents_stay_with_those_who_use_them():
    documents = DocumentCache({END}, max_tokens=20)
    scorer = make_scorer(documents)
    running = scorer.initial_state([1, 2, 3] * 5)
    before = scorer.score([running], [range(VOCABULARY_SIZE)])
    for i in range(1, 6):
        scorer.initial_state([i] * 18)
    gc.collect()
    assert documents.num_tokens <= 20
    assert scorer.score([running], [range(VOCABULARY_SIZE)]) == before


def test_many_small_documents_are_not_all_kept(monkeypatch):
    from superdraft.ngram_models.scoring import in_context

    monkeypatch.setattr(in_context, "_MAX_DOCUMENTS", 3)
    documents = DocumentCache({END})
    for first in range(1, 6):
        documents.lease([first])
    assert documents.num_tokens == 3


@pytest.mark.parametrize("weight", [0, -0.1, 1.1, math.nan])
def test_weights_outside_zero_to_one_are_refused(weight):
    with pytest.raises(ValueError, match="weight"):
        make_scorer(DocumentCache({END}), weight)


def test_order_is_the_longer_one_of_both():
    assert make_scorer(DocumentCache({END}, order=4)).order == 4
