"""Typists: the pause between their keys, the order of their requests, their shares, and drafts that they have seen."""

from contextlib import ExitStack

import pytest
from support.engine import FakeEngine

from superdraft.decoding.errors import SupersededError
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.server.bridge import typists as module
from superdraft.server.bridge.typists import LONGEST_WAIT_S, REMEMBERED_S, Typists
from superdraft.server.feedback import Feedback, Outcome
from superdraft.server.observe.metrics import Metrics

# Keys


def press(typist, now_s):
    with typist.arrival(now_s) as go:
        go()
    return typist.gap_s


def test_the_gap_follows_the_requests_of_the_session_and_not_pauses_for_thought():
    typists, now_s = Typists(), 100.0
    one, other = typists.of("", "a"), typists.of("", "b")
    assert press(one, now_s) is None
    assert press(other, now_s) is None
    for _ in range(50):
        now_s += 0.2
        usual_s = press(one, now_s)
    assert usual_s == pytest.approx(0.2)
    assert press(one, now_s + 60) == pytest.approx(0.2)
    now_s += 60
    for _ in range(50):
        now_s += 0.1
        usual_s = press(one, now_s)
    assert usual_s == pytest.approx(0.1, abs=0.001)
    assert press(other, now_s) is None


def test_a_wait_begins_with_the_first_request_without_drafts_and_ends_with_a_long_pause():
    typist = Typists().of("", "a")
    press(typist, 1.0)
    press(typist, 2.0)
    assert typist.waiting_since_s == 1.0
    press(typist, 1.0 + LONGEST_WAIT_S + 0.1)
    assert typist.waiting_since_s == pytest.approx(1.0 + LONGEST_WAIT_S + 0.1)


def test_those_of_whom_nothing_was_heard_longest_are_forgotten_but_for_those_at_work(monkeypatch):
    monkeypatch.setattr(module, "MAX_TYPISTS", 4)
    typists = Typists()
    busy = typists.of("x", "busy")
    with busy.arrival(0.0):
        known = {name: typists.of("x", name) for name in "abac"}
        typists.of("y", "d")
        assert typists.of("x", "busy") is busy
        assert typists.of("x", "a") is known["a"]
        assert typists.of("x", "b") is not known["b"]


def test_a_caller_who_invents_sessions_makes_the_server_forget_no_others(monkeypatch):
    monkeypatch.setattr(module, "MAX_TYPISTS", 10)
    typists = Typists()
    victim = typists.of("victim", "s")
    for number in range(1000):
        typists.of("flood", str(number))
    assert typists.of("victim", "s") is victim
    assert sum(len(caller.typists) for caller in typists._callers.values()) == 10
    for number in range(1000):
        typists.of(f"caller {number}", None)
    assert sum(len(caller.typists) for caller in typists._callers.values()) == 10
    assert len(typists._callers) <= 10


# The order of requests


def test_an_older_request_does_not_go_after_a_newer_one():
    typist = Typists().of("", "s")
    with typist.arrival(0) as go_first, typist.arrival(0) as go_second, typist.arrival(0) as go_third:
        go_second()
        with pytest.raises(SupersededError):
            go_first()
        go_third()
    assert not typist.is_active


def test_requests_in_order_of_other_sessions_and_of_none_all_go():
    typists = Typists()
    with ExitStack() as stack:
        names = ("s", "s", "t", None, None)
        goes = [stack.enter_context(typists.of("", name).arrival(0)) for name in names]
        for go in (goes[0], goes[1], goes[4], goes[3], goes[2]):
            go()


def test_a_newer_request_that_has_not_gone_is_in_nobodys_way():
    typist = Typists().of("", "s")
    with typist.arrival(0) as go:
        with pytest.raises(KeyError), typist.arrival(0):
            raise KeyError
        go()


def test_sessions_of_the_same_name_belong_to_their_callers():
    typists = Typists()
    assert typists.of("ann", "s") is typists.of("ann", "s")
    assert typists.of("ann", "s") is not typists.of("bob", "s")


# Shares


def give(typist, num_rows):
    typist.num_rows += num_rows
    typist.caller.num_rows += num_rows


def ask(typists, caller, session, num_rows, now_s):
    typist = typists.of(caller, session)
    for share in (typist, typist.caller):
        share.asked_s, share.asked_rows = now_s, num_rows
    return typist


def test_room_is_kept_for_those_who_asked_not_long_ago_and_have_nothing():
    typists = Typists()
    a, b, _ = (ask(typists, name, None, rows, now) for name, rows, now in (("a", 1, 0.0), ("b", 3, 1.0), ("c", 2, 2.0)))
    assert typists.kept_for_others(a, 2.0, 8) == (0, 0)  # it has no rows itself
    give(a, 1)
    assert typists.kept_for_others(a, 2.0, 8) == (5, 2)
    give(b, 1)
    assert typists.kept_for_others(a, 2.0, 8) == (2, 1)
    assert typists.kept_for_others(b, 2.0, 8) == (2, 1)
    assert typists.kept_for_others(a, 2.1 + REMEMBERED_S, 8) == (0, 0)


def test_sessions_of_a_caller_keep_room_for_each_other_alone():
    typists = Typists()
    ask(typists, "a", "typist", 3, 0.0)
    plain = ask(typists, "a", None, 1, 0.0)
    give(plain, 1)
    assert typists.kept_for_others(plain, 0.0, 8) == (3, 1)
    other = ask(typists, "b", None, 1, 0.0)
    give(other, 1)
    assert typists.kept_for_others(other, 0.0, 8) == (0, 0)


def test_the_room_kept_is_bounded():
    typists = Typists()
    a = ask(typists, "a", None, 1, 0.0)
    give(a, 1)
    for number in range(100):
        ask(typists, f"caller {number}", None, 3, 0.0)
    assert typists.kept_for_others(a, 0.0, 8) == (8, 3)


# Drafts that go on in the next answers


def test_a_draft_that_goes_on_where_the_typist_goes_keeps_its_identity():
    typists = Typists()
    window = typists.of("", "window")

    def origins(prompt: str, *drafts: str) -> list[tuple[str, int]]:
        number = origins.number = origins.number + 1
        return window.answered(prompt, drafts, f"answer {number}")

    origins.number = 0
    assert origins("Thank you", " for your help", " so much") == [("answer 1", 0), ("answer 1", 1)]
    # Typed on as the first draft says; it has grown, and another one is new.
    assert origins("Thank you for", " the fish", " your help with this") == [("answer 2", 0), ("answer 1", 0)]
    # Shorter than before, since the server has much to do.
    assert origins("Thank you for y", "our") == [("answer 1", 0)]
    assert origins("Thank you for you", "r time", "r help") == [("answer 1", 0), ("answer 4", 1)]
    # What follows a whole draft is another one, even if it repeats it.
    assert origins("Thank you for your time", "r time") == [("answer 5", 0)]
    # Another text, and the same text elsewhere.
    assert origins("Thank yo", "u for your time") == [("answer 6", 0)]
    assert typists.of("", "another").answered("Thank yo", ["u for your time"], "x") == [("x", 0)]
    assert typists.of("key", "window").answered("Thank yo", ["u for your time"], "y") == [("y", 0)]


def test_events_of_a_draft_count_once_however_many_answers_it_is_in():
    feedback = Feedback(Metrics())
    engine = FakeEngine()
    engine.add_request(EngineRequest("r", "hi", GenerationParams(max_tokens=1)))
    (step,) = engine.step()
    feedback.remember("", "first", step.output.drafts)
    feedback.remember("", "second", step.output.drafts, origins=[("second", 0), ("first", 0), ("gone", 1)])
    assert feedback.take("first", "shown", 0) == Outcome(0, is_new=True)
    assert feedback.take("second", "shown", 1) == Outcome(1, is_new=False)
    assert feedback.take("second", "accepted", 1) == Outcome(1, is_new=True)
    assert feedback.take("first", "accepted", 0) == Outcome(0, is_new=False)
    assert feedback.take("second", "shown", 0) == Outcome(0, is_new=True)
    assert feedback.take("second", "shown", 2) == Outcome(2, is_new=True)  # its first answer is not remembered


def test_the_repr_of_a_typist_is_no_print_of_all_others():
    """An error message of the standard library that held one took most of the event loop's time under overload."""
    everyone = Typists()
    alone = len(repr(everyone.of("caller", "one")))
    for number in range(100):
        everyone.of("caller", f"session {number}")
    assert len(repr(everyone.of("caller", "one"))) == alone
