"""The selection rule "distinct": which drafts begin, which child each one takes, which places stay free."""

import math

import numpy as np
import pytest

from superdraft.decoding.method.distinct import Distinct
from superdraft.decoding.method.draft_set import Children, Draft, DraftSet, TokenAppender
from superdraft.decoding.method.ranking import rank
from superdraft.decoding.params import GenerationParams

TOKENS = (b" the", b" a", b" cat", b" dog", b"s", b" sat", b" then", b"")
THE, A, CAT, DOG, S, SAT, THEN, END = range(8)
RULE = Distinct()
EXTEND = TokenAppender(TOKENS, frozenset({END}))


def step(drafts: DraftSet, rows: list[dict[int, float]], k: int) -> DraftSet:
    """One step; `rows` has the probability of each token after each alive draft."""
    token_ids = [sorted(row, key=lambda token: -row[token]) for row in rows]
    logprobs = np.full((len(rows), max(map(len, rows))), -np.inf)
    for i, row in enumerate(rows):
        logprobs[i, : len(row)] = np.log([row[token] for token in token_ids[i]])
    children = Children.of(drafts.alive, token_ids, list(logprobs), logprobs)
    return RULE.select(drafts, children, EXTEND, k)


def test_the_first_step_begins_the_k_most_probable_tokens():
    drafts = step(DraftSet(), [{THE: 0.5, A: 0.3, CAT: 0.15, DOG: 0.05}], 3)
    assert [draft.text for draft in drafts.alive] == [b" the", b" a", b" cat"]
    assert [draft.start for draft in drafts.alive] == [b" the", b" a", b" cat"]
    assert [draft.lm_logprob for draft in drafts.alive] == pytest.approx(np.log([0.5, 0.3, 0.15]))


def test_then_each_draft_takes_its_own_best_child_even_if_improbable():
    drafts = step(DraftSet(), [{THE: 0.9, A: 0.1}], 2)
    shared = {CAT: 0.6, DOG: 0.4}
    drafts = step(drafts, [shared, shared], 2)
    assert [draft.text for draft in drafts.alive] == [b" the cat", b" a cat"]  # and not " the dog", at 0.36 and 0.06
    assert [draft.start for draft in drafts.alive] == [b" the", b" a"]


def test_a_free_place_goes_to_the_first_probable_second_child():
    drafts = step(DraftSet(), [{THE: 0.995, A: 0.003, CAT: 0.002}], 3)
    assert [draft.text for draft in drafts.alive] == [b" the"]
    drafts = step(drafts, [{CAT: 0.9, DOG: 0.095, SAT: 0.005}], 3)
    assert [draft.text for draft in drafts.alive] == [b" the cat", b" the dog"]
    assert drafts.alive[1].start == b" the dog"
    row = {SAT: 0.8, S: 0.2}
    drafts = step(drafts, [row, row], 3)
    assert [draft.text for draft in drafts.alive] == [b" the cat sat", b" the cats", b" the dog sat"]
    drafts = step(drafts, [row, row, row], 3)
    assert len(drafts.alive) == 3


def test_no_draft_begins_after_the_first_words():
    alive = Draft(text=b" the cat sat", pieces=(b" the", b" cat", b" sat"), start=b" the")
    drafts = step(DraftSet((alive,)), [{THEN: 0.5, A: 0.5}], 3)
    assert len(drafts.alive) == 1


def test_a_draft_that_ends_keeps_its_place_and_one_without_text_takes_none():
    drafts = step(DraftSet(), [{END: 0.4, THE: 0.3, A: 0.2, CAT: 0.1}], 2)
    assert [draft.text for draft in drafts.alive] == [b" the", b" a"]
    assert [draft.text for draft in drafts.finished] == [b""]
    drafts = step(drafts, [{END: 0.9, CAT: 0.1}, {DOG: 0.6, CAT: 0.4}], 2)
    assert [draft.text for draft in drafts.alive] == [b" a dog"]
    assert [draft.text for draft in drafts.finished] == [b"", b" the"]  # by logprob
    assert {draft.text for draft in rank(drafts, 2, RULE)} == {b" the", b" a dog"}


def test_the_only_child_is_taken_even_if_it_is_improbable():
    drafts = step(DraftSet(), [{THE: 0.001}], 3)
    assert [draft.text for draft in drafts.alive] == [b" the"]


def test_drafts_after_several_stems_begin_beyond_the_typed_text():
    drafts = step(DraftSet((Draft(rest=b" th"), Draft(stem_ids=(THE,)))), [{THE: 0.5, THEN: 0.3}, {CAT: 0.2}], 3)
    found = [(draft.text, draft.start, draft.stem_ids) for draft in drafts.alive]
    assert found == [(b"e", b"e", ()), (b"en", b"en", ()), (b" cat", b" cat", (THE,))]


def test_the_score_is_the_probability_of_the_first_word():
    draft = Draft(
        token_ids=(CAT, S, SAT), pieces=(b" cat", b"s", b" sat"), start=b" cat", token_logprobs=(-1.0, -0.5, -2.0)
    )
    assert RULE.score(draft) == -1.5
    assert GenerationParams(selection="distinct").ranking_rule.score(draft) == -1.5
    sampled = GenerationParams(selection="distinct", strategy="sample+superposed")
    for params in (GenerationParams(), sampled):
        assert params.ranking_rule.score(Draft(logprob=-4.0, num_scored=2)) == -2.0


def test_words_up_to_the_one_that_differs_count():
    draft = Draft(
        token_ids=(THE, CAT, S, SAT),
        pieces=(b" the", b" cat", b"s", b" sat"),
        start=b" the cat",
        token_logprobs=(-0.1, -1.0, -0.5, -2.0),
    )
    assert RULE.score(draft) == pytest.approx(-1.6)


def test_an_end_of_text_ends_the_first_word():
    draft = Draft(token_ids=(CAT,), pieces=(b" cat",), start=b" cat", token_logprobs=(-1.0, -0.7), finish_reason="stop")
    assert RULE.score(draft) == -1.0
    assert math.isfinite(RULE.score(Draft()))


def extents(**fields) -> list[tuple[int, float]]:
    pieces = fields["pieces"]
    fields.setdefault("text", b"".join(pieces))
    draft = Draft(token_ids=tuple(range(len(pieces))), start=pieces[0], **fields)
    return [(extent.num_characters, round(extent.probability, 4)) for extent in RULE.extents(draft)]


def test_an_extent_ends_with_each_word_and_is_as_probable_as_its_tokens_together():
    half, third = math.log(1 / 2), math.log(1 / 3)
    found = extents(pieces=(b" cat", b"s", b" sat"), token_logprobs=(half, half, third))
    assert found == [(5, 0.25), (9, 0.0833)]
    # An end of text ends the word and does not make it less probable.
    assert extents(pieces=(b" cat", b"s"), token_logprobs=(half, half, third), finish_reason="stop") == [(5, 0.25)]


def test_an_improbable_word_and_what_follows_it_have_no_extent():
    found = extents(pieces=(b" the", b" cat", b" sat"), token_logprobs=(math.log(0.5), math.log(0.01), math.log(0.9)))
    assert found == [(4, 0.5)]


def test_extents_count_characters_and_not_bytes():
    jour = "à".encode()
    found = extents(pieces=(jour[:1], jour[1:], b" la"), token_logprobs=(math.log(0.5), 0.0, math.log(0.5)))
    assert found == [(1, 0.5), (4, 0.25)]


def test_where_a_script_has_no_spaces_each_token_ends_a_word():
    found = extents(pieces=("今日".encode(), "は".encode()), token_logprobs=(math.log(0.5), math.log(0.5)))
    assert found == [(2, 0.5), (3, 0.25)]


def test_a_text_cut_within_a_word_keeps_the_words_probability_as_a_bound():
    found = extents(pieces=(b" cat", b" sat"), text=b" cat s", token_logprobs=(math.log(0.5), math.log(0.5)))
    assert found == [(4, 0.5), (6, 0.25)]
    found = extents(pieces=(b" cat", b" sat"), text=b" ca", token_logprobs=(math.log(0.5), math.log(0.5)))
    assert found == [(3, 0.5)]
    assert extents(pieces=(b" cat",), text=b"", token_logprobs=(math.log(0.5),)) == []


def test_the_first_extent_of_a_corrected_word_is_the_words():
    found = extents(
        pieces=(b"receive the", b" mail"),
        token_logprobs=(math.log(0.3), math.log(0.5)),
        replaced=b"recieve ",
        word_logprob=math.log(0.6),
    )
    assert found == [(7, 0.6), (11, 0.3), (16, 0.15)]


def test_the_papers_scores_are_no_probabilities_of_a_text():
    draft = Draft(token_ids=(CAT,), pieces=(b" cat",), text=b" cat", token_logprobs=(-0.5,))
    assert GenerationParams(selection="paper").ranking_rule.extents(draft) == ()
