"""What a typing session reports, under a manual clock."""

import pytest
from support.typist import started


def test_shown_after_a_quarter_of_a_second():
    bench = started("a", "bcd")
    bench.wait(0.24)
    assert bench.events == []
    bench.wait(0.02)
    assert bench.events == [("shown", "drafts-1", 0)]
    bench.type("b")
    bench.wait(60)  # still on the screen
    assert bench.events == [("shown", "drafts-1", 0)]
    bench.do("accept")
    assert bench.events == [("shown", "drafts-1", 0), ("accepted", "drafts-1", 0)]
    assert bench.reports[-1].elapsed_ms == pytest.approx(60_410, abs=1)


def test_glimpses_are_not_shown():
    bench = started("a", "bcd")
    bench.wait(0.2)
    bench.type("x", pause_s=0.0)
    bench.wait(60)
    assert bench.events == []


def test_dismissed_ten_seconds_after_it_came_and_when_it_is_gone():
    bench = started("a", "bcd")
    bench.wait(1)
    bench.type("x", pause_s=0)
    bench.wait(8.9)
    assert bench.events == [("shown", "drafts-1", 0)]
    bench.wait(0.2)
    assert bench.events[1:] == [("dismissed", "drafts-1", 0)]
    assert bench.reports[-1].elapsed_ms == pytest.approx(10_000)
    bench.do("edit", "a")  # it comes again, but its story is told
    bench.wait(20)
    bench.do("accept")
    assert len(bench.events) == 2


def test_coming_back_within_ten_seconds_it_can_be_accepted():
    bench = started("a", "bcd")
    bench.wait(1)
    bench.type("x")
    bench.do("edit", "a")
    bench.do("accept")
    bench.wait(60)
    assert bench.events == [("shown", "drafts-1", 0), ("accepted", "drafts-1", 0)]


def test_what_is_accepted_or_dismissed_at_once_was_seen():
    bench = started("a", "bcd")
    bench.do("accept")
    assert bench.events == [("shown", "drafts-1", 0), ("accepted", "drafts-1", 0)]
    other = started("a", "bcd")
    other.do("dismiss")
    assert other.events == [("shown", "drafts-1", 0), ("dismissed", "drafts-1", 0)]


def test_each_draft_that_was_cycled_through_counts():
    bench = started("a", "b", "c", "d")
    bench.wait(0.3)
    bench.do("select_next")
    bench.wait(0.1)
    bench.do("select_next")
    bench.wait(0.3)
    bench.do("accept")
    assert bench.events == [("shown", "drafts-1", 0), ("shown", "drafts-1", 2), ("accepted", "drafts-1", 2)]


def test_accepted_part_is_reported_when_there_can_be_no_more():
    bench = started("Thank you", " for your email")
    bench.wait(1)
    bench.do("accept_word")
    assert len(bench.events) == 1
    bench.type(" y")
    bench.do("accept_word")
    bench.type("x")
    assert bench.events[1:] == [("accepted", "drafts-1", 0)]
