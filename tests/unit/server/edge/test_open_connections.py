"""Which connection is closed for a new one, and which new ones are refused."""

import pytest

from superdraft.server.edge.open_connections import OpenConnections

MOST, MOST_SAME = 10, 4


class Connection:
    """`state`: idle, receiving, answered (a request has come, and its answer has not ended) or closing."""

    def __init__(self, network="a", state="receiving"):
        self.network = network
        self.state = state
        self.is_dropped = False

    @property
    def is_dispensable(self):
        return self.state == "idle"

    @property
    def is_receiving(self):
        return self.state == "receiving"

    def drop(self):
        self.is_dropped = True


@pytest.fixture
def connections():
    return OpenConnections(MOST, MOST_SAME)


@pytest.fixture
def opened(connections):
    def add(number, network="a", state="receiving"):
        added = [Connection(network, state) for _ in range(number)]
        assert [connections.add(each) for each in added] == [None] * number
        return added

    return add


def dropped(of):
    return [number for number, each in enumerate(of) if each.is_dropped]


def test_for_a_new_one_of_a_network_its_longest_idle_one_is_closed(connections, opened):
    others = opened(4, "b", "idle")
    of_a = opened(1) + opened(3, state="idle")
    opened(1)
    assert dropped(of_a) == [1]
    of_a[2].state = "receiving"
    connections.note(of_a[2])
    of_a[2].state = "idle"
    connections.note(of_a[2])
    opened(1)
    assert dropped(of_a) == [1, 3]  # the one that was busy in the meantime is younger now
    opened(1)
    assert dropped(of_a) == [1, 2, 3]
    assert connections.add(Connection()) == "address"
    assert dropped(others) == []


def test_for_a_new_one_of_all_the_longest_idle_one_is_closed(opened):
    of_a = opened(4)
    of_b = opened(4, "b", "idle")
    opened(2, "c")
    opened(2, "d")
    assert dropped(of_b) == [0, 1]
    assert dropped(of_a) == []


def test_one_that_is_being_closed_is_left_to_send_its_answer(connections, opened):
    closing, idle = opened(2, state="idle")
    opened(2)
    closing.state = "closing"
    opened(1)
    assert (closing.is_dropped, idle.is_dropped) == (False, True)
    assert connections.add(Connection()) == "address"


def test_few_addresses_with_half_sent_requests_do_not_take_all_places(connections, opened):
    of_a, of_b = opened(1, state="answered") + opened(3), opened(4, "b", "answered")
    opened(2, "c")
    opened(1, "d")
    assert dropped(of_a) == [1]
    opened(1, "d")
    assert dropped(of_a) == [1, 2]  # b has more now, but nothing to receive
    assert dropped(of_b) == []
    assert connections.add(Connection("d")) == "all"


def test_nobody_gets_more_places_than_those_who_lose_one(connections, opened):
    of_a, of_b, of_c = opened(4), opened(3, "b"), opened(3, "c")
    assert connections.add(Connection("a")) == "address"
    assert connections.add(Connection("b")) == "all"
    opened(1, "d")
    assert dropped(of_a) == [0]
    opened(1, "d")
    assert dropped(of_a + of_b + of_c) == [0, 1]
    assert connections.add(Connection("d")) == "all"


def test_proxies_have_no_limit_of_their_own_and_lose_no_requests(connections, opened):
    proxied = opened(7, None)
    of_a = opened(2)
    opened(1, "b")
    proxied += opened(1, None)
    assert dropped(of_a) == [0]
    assert connections.add(Connection(None)) == "all"
    assert connections.add(Connection("c")) == "all"
    assert dropped(proxied) == []


def test_places_of_those_who_leave_are_free_again(connections, opened):
    for _ in range(3):
        for one in opened(4, state="idle") + opened(4, "b") + opened(2, "c"):
            connections.remove(one)
            connections.remove(one)  # also if it was not there any more
    left = Connection()
    connections.note(left)
    opened(4)
    assert connections.add(left) == "address"
    connections.remove(left)
    assert connections.add(left) == "address"
