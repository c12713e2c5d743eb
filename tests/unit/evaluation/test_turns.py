"""saved@k and acceptance_rate@k, counted by hand."""

import pytest

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.measures.suggestion_turns import TurnCount, Writer, accepted_length, count_turns, fits


def prompt(reference="going to the moon", text="I am", **more):
    return Prompt("p", "d", text, reference, **more)


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
    (count,) = count_turns([prompt()], lambda places: [drafts[place.text] for place in places], 3)
    # " going to" (9) is accepted, " the" typed, " moon" (5) accepted; 18 characters in all.
    assert count == TurnCount(3, False, num_characters=18, num_accepted_characters=14, num_accepted=2, num_turns=3)
    assert count.saved == pytest.approx((14 - 2) / 17)
    assert count.acceptance_rate == pytest.approx(2 / 3)


def test_only_the_first_k_are_shown_and_the_longest_of_them_is_taken():
    drafts = [" going", " gone", " going to the"]
    for num_shown, accepted in ((1, " going"), (2, " going"), (3, " going to the")):
        writer = Writer(prompt(), num_shown)
        writer.take(drafts)
        assert writer.place.text == f"I am{accepted}"
        assert writer.count.num_accepted_characters == len(accepted)


def test_a_turn_without_a_draft_is_none():
    writer = Writer(prompt("to"), 3)
    writer.take(["", "  "])
    assert writer.is_done
    assert writer.count == TurnCount(3, False, 3, 0, 0, 0)
    assert (writer.count.saved, writer.count.acceptance_rate) == (0, 0)


def test_nothing_is_suggested_before_a_punctuation_mark():
    asked = []

    def suggest(places):
        asked.append([place.text for place in places])
        return [[" gone"] for _ in places]

    (count,) = count_turns([prompt("gone, gone")], suggest, 1)
    assert asked == [["I am"], ["I am gone,"]]
    assert (count.num_accepted, count.num_accepted_characters, count.num_characters) == (2, 10, 11)
    assert count.saved == pytest.approx(8 / 10)


def test_a_half_word_and_a_limit_of_words():
    (count,) = count_turns(
        [prompt("ves much more", "It impro", is_mid_word=True)], lambda places: [["ves"] for _ in places], 1, 2
    )
    assert count == TurnCount(1, False, len("ves much"), num_accepted_characters=3, num_accepted=1, num_turns=2)


def test_drafts_may_be_accepted_in_part():
    drafts = [" gone", " going to them"]
    assert [accepted_length(draft, " going to the moon", in_part=True) for draft in drafts] == [0, len(" going to")]
    assert accepted_length(" going to them", " going to the moon", in_part=False) == 0
    assert accepted_length(" going to ", " going to the moon", in_part=True) == len(" going to ")
    for num_shown, in_part, accepted in ((2, True, 9), (2, False, 0), (1, True, 0)):
        writer = Writer(prompt(), num_shown, in_part=in_part)
        writer.take(drafts)
        assert writer.count.num_accepted_characters == accepted
        assert writer.count.in_part is in_part
