"""The metrics against examples worked by hand."""

import math

import pytest

from superdraft.evaluation.measures.metrics import (
    bleu,
    contains_answer,
    distinct_starts,
    exact_match,
    most_words_right,
    normalise_answer,
    perplexity,
    precision_at,
    self_bleu,
    words_right,
)


@pytest.mark.parametrize(
    ("draft", "continuation", "expected"),
    [
        (" to the moon", " to the moon and back", 3),
        (" to the moon and back again", " to the moon", 3),
        (" to the sun", " to the moon", 2),
        (" the moon", " to the moon", 0),  # right words, wrong place
        ("", " to the moon", 0),
        ("   ", " to", 0),
        (" to,", " to", 0),  # punctuation is part of a word
        (" To", " to", 0),
        (" naïve café", " naïve café", 2),
        (" nai\u0308ve", " naïve", 0),  # another spelling in Unicode would be other characters on the screen
        (" a\n  b", " a b", 2),
        ("to the", " to the", 0),  # would be glued to the word before
        ("ments to", "ments to type", 2),  # the word was cut
        (" ments", "ments to type", 0),
    ],
)
def test_words_right(draft, continuation, expected):
    assert words_right(draft, continuation) == expected


def test_the_best_draft_counts():
    assert most_words_right([" x", " to the", " to"], " to the moon") == 2
    assert most_words_right([], " to") == 0


def test_exact_match_of_any_draft():
    drafts = [" to the sun", " to a"]
    assert [exact_match(drafts, " to the moon it", n) for n in (1, 2, 3, 4)] == [True, True, False, False]
    assert exact_match([" to the moon"], " to the moon", 4) is None  # the reference says nothing about four words
    assert exact_match([" to the"], " to the moon", 3) is False  # a draft shorter than the reference


def test_perplexity():
    assert perplexity([math.log(1 / 2), math.log(1 / 8)]) == pytest.approx(4)
    assert perplexity([0.0]) == 1
    assert math.isnan(perplexity([]))


@pytest.mark.parametrize(
    ("drafts", "expected"),
    [
        ([" a b c d", " a b c e", " a b x"], 2),
        ([" a b", " a b c"], 2),
        ([" a  b c", "\na b c"], 1),
        ([" a", "", "  "], 1),
        ([], 0),
    ],
)
def test_distinct_starts(drafts, expected):
    assert distinct_starts(drafts) == expected


def test_bleu_by_hand():
    # 2 of 3 words, 1 of 2 pairs, no triple of 1 (0.1 counted).
    assert bleu(["the", "cat", "sat"], [["the", "cat", "ran"]]) == pytest.approx((2 / 3 * 1 / 2 * 0.1) ** (1 / 3))
    # A word counts no more often than in the reference; no pair of 2.
    assert bleu(["the", "the", "the"], [["the", "cat"]]) == pytest.approx((1 / 3 * 0.1 / 2 * 0.1) ** (1 / 3))
    # Half the reference's length.
    assert bleu(["a", "b"], [["a", "b", "c", "d"]]) == pytest.approx(math.exp(1 - 4 / 2))
    # Each n-gram may be found in another reference; of two equally close lengths the shorter counts.
    assert bleu(["a", "b", "c"], [["a", "b"], ["b", "c", "x", "y"]]) == pytest.approx((1 * 1 * 0.1) ** (1 / 3))
    assert bleu(["a", "b"], [["c", "d"]]) == 0
    assert bleu([], [["c", "d"]]) == 0


def test_self_bleu():
    assert self_bleu([" a b c d", " a b c d", " a b c d"]) == pytest.approx(1)
    assert self_bleu([" a b", " c d"]) == 0
    assert self_bleu([" a b", " a b c d"]) == pytest.approx((math.exp(-1) + bleu(list("abcd"), [list("ab")])) / 2)
    assert math.isnan(self_bleu([" a b"]))


def test_answers_are_normalised():
    assert normalise_answer("  The  Dieppe (Seine-Maritime)! ") == "dieppe seinemaritime"
    assert normalise_answer("An a the") == ""
    assert normalise_answer("Anthem") == "anthem"  # no article inside a word


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        (" It was the Dieppe, raid", True),
        (" DIEPPE", True),
        (" Dieppes", False),
        (" Die ppe", False),
        ("", False),
    ],
)
def test_contains_answer(draft, expected):
    assert contains_answer(draft, ["Calais", "Dieppe!"]) is expected


def test_an_answer_of_articles_alone_is_in_no_draft():
    assert not contains_answer(" anything", ["The", ""])


def test_precision_at():
    drafts = [" London", " Rome", " Paris"]
    assert [precision_at(drafts, ["paris"], n) for n in (1, 2, 3, 9)] == [False, False, True, True]
    assert not precision_at([], ["paris"], 3)
