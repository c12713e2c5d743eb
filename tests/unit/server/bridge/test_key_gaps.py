"""The usual pause between a typist's keys."""

import pytest

from superdraft.server.bridge import key_gaps
from superdraft.server.bridge.key_gaps import KeyGaps


def test_the_gap_follows_the_requests_of_the_session_and_not_pauses_for_thought():
    gaps, now_s = KeyGaps(), 100.0
    assert gaps.note("a", now_s) is None
    assert gaps.note("b", now_s) is None
    for _ in range(50):
        now_s += 0.2
        usual_s = gaps.note("a", now_s)
    assert usual_s == pytest.approx(0.2)
    assert gaps.note("a", now_s + 60) == pytest.approx(0.2)
    now_s += 60
    for _ in range(50):
        now_s += 0.1
        usual_s = gaps.note("a", now_s)
    assert usual_s == pytest.approx(0.1, abs=0.001)
    assert gaps.note("b", now_s) is None


def test_the_sessions_of_which_nothing_was_heard_longest_are_forgotten(monkeypatch):
    monkeypatch.setattr(key_gaps, "MAX_SESSIONS", 2)
    gaps = KeyGaps()
    for name in ("a", "b", "a", "c"):
        gaps.note(name, 1.0)
    assert gaps.note("a", 1.5) == pytest.approx(0.25, abs=0.25)
    assert gaps.note("b", 1.5) is None
