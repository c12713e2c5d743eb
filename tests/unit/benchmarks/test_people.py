"""People at the keyboard: what they type, when they see drafts and what they accept."""

import asyncio
import random
import time

import pytest

from superdraft.benchmarks.over_http import people
from superdraft.benchmarks.over_http.people import Answer, Person, Tally, run
from superdraft.evaluation.cases.prompts import Prompt

CASE = Prompt("1", "mail", "Thank you for", "your help with the garden. It looks")
KEYS = len(CASE.continuation)


class Server:
    """Answers with drafts for each text, after some seconds."""

    def __init__(self, drafts, seconds=0.0):
        self.asked = []
        self._drafts, self._seconds = drafts, seconds

    async def ask(self, http, text, person):
        self.asked.append(text)
        await asyncio.sleep(self._seconds)
        drafts = self._drafts(text)
        return None if drafts is None else Answer(drafts, rows=2, is_known=not self._seconds)


@pytest.fixture(autouse=True)
def fast_typist(monkeypatch):
    monkeypatch.setattr(people, "KEY_PAUSE_S", 0.005)


def typed(server):
    """Let a person type the text once."""
    tally, cases = Tally(), iter([CASE])
    person = Person(server.ask, None, cases, tally, random.Random(0))
    with pytest.raises(RuntimeError, match="StopIteration"):  # the texts have ended
        asyncio.run(person.type(time.perf_counter() + 60))
    return tally


def test_without_drafts_every_character_is_a_key_and_asks_for_the_text_so_far():
    server = Server(lambda text: [])
    tally = typed(server)
    assert server.asked == [CASE.text + CASE.continuation[:end] for end in range(1, KEYS + 1)]
    row = tally.row("x", 1)
    assert (row["keys"], row["shown"], row["keys_saved"], row["refused"]) == (KEYS, 0, 0, 0)


def test_the_longest_right_beginning_is_accepted_and_costs_a_key_and_one_for_each_draft_above():
    def drafts(text):
        rest = (CASE.text + CASE.continuation)[len(text) :]
        return ["nonsense", rest[:20]] if text.endswith("for ") else []

    tally = typed(Server(drafts))
    # One key for the space, one for accepting "your help with the", one for the draft above; the others are typed.
    assert tally.num_characters == KEYS
    assert tally.num_extra_keys == 1
    assert len(tally.shown) == KEYS - len("your help with the") + 1
    row = tally.row("x", 1)
    assert row["keys_saved"] == pytest.approx((len("your help with the") - 2) / KEYS, abs=0.001)
    assert (row["rows"], row["known"]) == (2, 1)


def test_drafts_that_come_after_the_next_key_are_not_seen_and_refusals_are_counted():
    tally = typed(Server(lambda text: [" word"], seconds=1.0))
    assert not tally.answers
    assert tally.row("x", 1)["shown"] == 0
    tally = typed(Server(lambda text: None))
    assert tally.num_refused > KEYS / 2


def test_keys_inside_words_are_told_from_others():
    tally = typed(Server(lambda text: []))
    text = CASE.continuation
    inside = [text[i].isalnum() and text[i + 1 : i + 2].isalnum() for i in range(KEYS)]
    assert [is_inside for is_inside, _ in tally.shown] == inside


def test_people_type_different_texts_at_the_same_time(monkeypatch):
    monkeypatch.setattr(people, "WARM_UP_S", 0.5)
    cases = [Prompt(str(number), "mail", f"text {number}", "some words to type") for number in range(8)]
    server = Server(lambda text: [])
    tally = asyncio.run(run(server.ask, "http://127.0.0.1:9", cases, 3, 0.5))
    assert len({text.split(" some")[0] for text in server.asked}) >= 3
    assert 3 < len(tally.shown) < len(server.asked)


def test_what_a_correction_adds_is_accepted_and_a_wrong_one_is_not(monkeypatch):
    monkeypatch.setattr(Person, "_typed", lambda self, key: "j" if key == "h" else key)
    asked = []

    async def ask(http, text, person):
        asked.append(text)
        if text.endswith("your j"):
            return Answer(["just then", "help with the"], [1, 1])
        return Answer(["garage"], [4]) if text.endswith(" gard") else Answer([])

    tally = Tally()
    person = Person(ask, None, iter([CASE]), tally, random.Random(0), 0.1)
    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(person.type(time.perf_counter() + 60))
    assert asked[-1] == CASE.text + CASE.continuation, "the correction took the wrong letter's place"
    assert tally.num_extra_keys == 1
    assert tally.num_characters == KEYS
    assert len(tally.shown) == KEYS - len("elp with the") + 1


def test_some_keys_come_out_as_neighbours_and_nobody_corrects_them():
    asked = []

    async def ask(http, text, person):
        asked.append(text)
        return Answer([])

    case = Prompt("1", "mail", "", "the quick brown fox jumps over it" * 3)
    person = Person(ask, None, iter([case]), Tally(), random.Random(0), 0.2)
    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(person.type(time.perf_counter() + 60))
    wrong = [(a, b) for a, b in zip(asked[-1], case.continuation, strict=True) if a != b]
    assert 5 < len(wrong) < 40
    assert all(a.isalpha() and b.isalpha() for a, b in wrong)
