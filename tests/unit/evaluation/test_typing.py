"""Typing simulations counted by hand."""

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.measures.typing_simulation import (
    TypingCount,
    Typist,
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


def test_only_the_first_words_are_typed():
    typist = Typist(prompt(), max_words=2)
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


def test_a_half_word_and_a_limit_of_words():
    half = prompt("It impro", "ves much more", is_mid_word=True)
    (count,) = type_all([half], lambda places: [["ves"] for _ in places], 2)
    assert count == TypingCount(len("ves much"), 1 + len(" much"))
