"""Places inside lines: what is missing there, and what counts as right."""

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.runs.inside_lines import KINDS, Count, Place, _add, places_of

TEXT = " ".join(f"word{letter}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
PROMPT = Prompt("1", "email", TEXT[:40].rstrip(), TEXT[40:].lstrip())


def test_a_place_of_each_kind():
    places = {place.kind: place for place in places_of([PROMPT], seed=1)}
    assert set(places) == set(KINDS)
    whole = PROMPT.text + PROMPT.continuation + "\n"
    assert all(place.before + place.missing + place.after == whole for place in places.values())
    assert 1 <= len(places[KINDS[0]].missing.split()) <= 4
    assert places[KINDS[0]].missing.startswith(" ")
    assert places[KINDS[1]].missing.isalpha()
    assert places[KINDS[2]].missing == ""
    assert places_of([PROMPT], seed=1) == places_of([PROMPT], seed=1)


def test_short_texts_have_no_place():
    assert places_of([Prompt("1", "email", "one two", "three")], seed=1) == []


def test_what_counts_as_right():
    count, place = Count(KINDS[0], "as decoded"), Place(KINDS[0], "See you", " at noon", " tomorrow.\n")
    for draft in (" at noon", " at one", "at noon", " soon", ""):
        _add(count, place, draft)
    assert (count.num_places, count.num_shown, count.num_first_right, count.num_all_right) == (5, 4, 2, 1)
    nothing = Count(KINDS[2], "as decoded")
    _add(nothing, Place(KINDS[2], "See you", "", " tomorrow.\n"), " at")
    assert (nothing.num_shown, nothing.num_first_right, nothing.num_all_right) == (1, 0, 0)
