"""Typing simulations counted by hand."""

import pytest

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.measures.typing_simulation import (
    LIST,
    Rule,
    TypingCount,
    Typist,
    fits,
    type_all,
)


def prompt(text="I am", reference="going to the moon", **more):
    return Prompt("p", "d", text, reference, **more)


def keys(typist):
    return typist.count.num_keys, typist.count.num_characters


def test_without_drafts_every_character_is_a_key():
    typist = Typist(prompt())
    seen = []
    while not typist.is_done:
        seen.append((typist.place.text, typist.place.num_words))
        typist.take([])
    assert keys(typist) == (len(" going to the moon"), len(" going to the moon"))
    assert seen == [("I am", 0), ("I am going", 1), ("I am going to", 2), ("I am going to the", 3)]


def test_accepting_costs_one_key_and_one_for_each_step_down():
    typist = Typist(prompt())
    typist.take([" coming", " going", " going to them"])  # the longest right beginning is in the third
    assert (typist.count.num_keys, typist.place.text) == (3, "I am going to")
    typist.take([" the moon", " the moon"])  # of two as long, the first
    assert typist.is_done
    assert keys(typist) == (4, len(" going to the moon"))


def test_a_wrong_suggestion_costs_nothing_but_the_word():
    typist = Typist(prompt())
    typist.take([" gone to the moon"])
    assert typist.count.num_keys == len(" going")


@pytest.mark.parametrize("rule", [LIST, Rule(1)])
def test_only_the_first_words_are_typed(rule):
    typist = Typist(prompt(), rule, max_words=2)
    typist.take([" going to"])
    assert typist.is_done
    assert keys(typist) == (1, len(" going to"))


def test_a_word_that_was_cut_is_finished_first():
    typist = Typist(prompt("It impro", "ves much", is_mid_word=True))
    typist.take([" ves"])
    assert typist.place.text == "It improves"
    assert keys(typist) == (3, len("ves much"))


def test_many_are_typed_in_rounds():
    prompts = [prompt(reference="a b c"), prompt(reference="a"), prompt(reference="x b")]
    asked = []

    def suggest(places):
        asked.append([place.text for place in places])
        return [[" a"] if place.num_words == 0 else [" b"] for place in places]

    counts = type_all(prompts, suggest)
    assert asked == [["I am"] * 3, ["I am a", "I am x"], ["I am a b"]]
    assert [(one.num_keys, one.num_characters) for one in counts] == [(1 + 1 + 2, 6), (1, 2), (2 + 1, 4)]


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        (" going", True),
        (" going to the moon", True),
        (" going ", True),
        (" go", False),  # ends inside a word
        (" going to the moons", False),
        (" Going", False),
        ("going", False),
    ],
)
def test_a_draft_fits_if_it_is_a_beginning_up_to_a_words_end(draft, expected):
    assert fits(draft, " going to the moon") is expected


def test_a_draft_may_end_before_a_punctuation_mark():
    assert fits(" gone", " gone, and")
    assert not fits(" gone", " gone-by")


def test_accepted_drafts_cost_one_key_each():
    drafts = {"I am": [" going to", " going"], "I am going to": [" a"], "I am going to the": [" moon"]}
    (count,) = type_all([prompt()], lambda places: [drafts[place.text] for place in places], Rule(3))
    # " going to" (9) is accepted, " the" typed, " moon" (5) accepted; 18 characters in all.
    assert count == TypingCount(18, num_keys=2 + 4, num_accepted_characters=14, num_accepted=2, num_turns=3)
    assert count.saved == pytest.approx((14 - 2) / 17)
    assert count.acceptance_rate == pytest.approx(2 / 3)


def test_only_the_first_k_are_shown_and_the_longest_of_them_is_taken():
    drafts = [" going", " gone", " going to the"]
    for num_shown, accepted in ((1, " going"), (2, " going"), (3, " going to the")):
        typist = Typist(prompt(), Rule(num_shown))
        typist.take(drafts)
        assert typist.place.text == f"I am{accepted}"
        assert typist.count.num_accepted_characters == len(accepted)


def test_a_turn_without_a_draft_is_none():
    typist = Typist(prompt(reference="to"), Rule(3))
    typist.take(["", "  "])
    assert typist.is_done
    assert typist.count == TypingCount(3, 3, 0, 0, 0)
    assert (typist.count.saved, typist.count.acceptance_rate) == (0, 0)


def test_nothing_is_suggested_before_a_punctuation_mark():
    asked = []

    def suggest(places):
        asked.append([place.text for place in places])
        return [[" gone"] for _ in places]

    (count,) = type_all([prompt(reference="gone, gone")], suggest, Rule(1))
    assert asked == [["I am"], ["I am gone,"]]
    assert (count.num_accepted, count.num_accepted_characters, count.num_characters) == (2, 10, 11)
    assert count.num_keys == 2 + len(",")
    assert count.saved == pytest.approx(8 / 10)


def test_a_half_word_and_a_limit_of_words():
    half = prompt("It impro", "ves much more", is_mid_word=True)
    (count,) = type_all([half], lambda places: [["ves"] for _ in places], Rule(1), 2)
    assert count == TypingCount(len("ves much"), 1 + 5, num_accepted_characters=3, num_accepted=1, num_turns=2)
