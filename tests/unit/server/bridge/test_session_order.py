"""The order of a session's requests on their way to the engine."""

from contextlib import ExitStack

import pytest

from superdraft.decoding.errors import SupersededError
from superdraft.server.bridge.session_order import SessionOrder


def test_an_older_request_does_not_go_after_a_newer_one():
    order = SessionOrder()
    with order.arrival("s") as go_first, order.arrival("s") as go_second, order.arrival("s") as go_third:
        go_second()
        with pytest.raises(SupersededError):
            go_first()
        go_third()


def test_requests_in_order_of_other_sessions_and_of_none_all_go():
    order = SessionOrder()
    with ExitStack() as stack:
        names = ("s", "s", "t", None, None)
        goes = [stack.enter_context(order.arrival(name)) for name in names]
        for go in (goes[0], goes[1], goes[4], goes[3], goes[2]):
            go()


def test_a_newer_request_that_has_not_gone_is_in_nobodys_way():
    order = SessionOrder()
    with order.arrival("s") as go:
        with pytest.raises(KeyError), order.arrival("s"):
            raise KeyError
        go()


def test_nothing_is_kept_of_a_session_without_requests():
    order = SessionOrder()
    for _ in range(3):
        with order.arrival("s") as go:
            go()
    assert order._sessions == {}
