"""Shares of callers and of their sessions: whose turn it is, and for whom room is kept."""

from superdraft.server.bridge.fair_shares import MAX_REMEMBERED, REMEMBERED_S, FairShares


def test_who_has_fewer_rows_is_next_callers_first():
    shares = FairShares(8)
    shares.add("key a", "one", 3)
    shares.add("key b", "one", 2)
    shares.add("key b", "two", 1)
    assert shares.rank("key a", "two") == (3, 0)
    assert shares.rank("key b", "one") == (3, 2)
    assert shares.rank("key c", None) == (0, 0)
    shares.add("key a", "one", -3)
    assert shares.rank("key a", "one") == (0, 0)


def test_room_is_kept_for_those_who_asked_not_long_ago_and_have_nothing():
    shares = FairShares(8)
    shares.ask("a", None, 1, 0.0)
    shares.ask("b", None, 3, 1.0)
    shares.ask("c", None, 2, 2.0)
    assert shares.kept_for_others("a", None, 2.0) == (0, 0)  # it has no rows itself
    shares.add("a", None, 1)
    assert shares.kept_for_others("a", None, 2.0) == (5, 2)
    shares.add("b", None, 1)
    assert shares.kept_for_others("a", None, 2.0) == (2, 1)
    assert shares.kept_for_others("b", None, 2.0) == (2, 1)
    assert shares.kept_for_others("a", None, 2.1 + REMEMBERED_S) == (0, 0)


def test_sessions_of_a_caller_keep_room_for_each_other_alone():
    shares = FairShares(8)
    shares.ask("a", "typist", 3, 0.0)
    shares.ask("a", None, 1, 0.0)
    shares.add("a", None, 1)
    assert shares.kept_for_others("a", None, 0.0) == (3, 1)
    shares.ask("b", None, 1, 0.0)
    shares.add("b", None, 1)
    assert shares.kept_for_others("b", None, 0.0) == (0, 0)


def test_room_kept_and_memory_are_bounded():
    shares = FairShares(8)
    shares.add("a", None, 1)
    for number in range(2 * MAX_REMEMBERED):
        shares.ask(f"caller {number}", None, 3, 0.0)
        shares.ask("a", f"session {number}", 3, 0.0)
    assert shares.kept_for_others("a", None, 0.0) == (8, 3)
    assert len(shares._asked[()]) == MAX_REMEMBERED
    assert len(shares._asked) <= MAX_REMEMBERED + 1
    assert len(shares._asked["a",]) == MAX_REMEMBERED
    shares.ask("late", None, 1, 2 * REMEMBERED_S)
    assert list(shares._asked) == [(), ("late",)]
