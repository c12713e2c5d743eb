"""Which connections stay open when too many are.

Attackers can open connections so fast that for none of them all others could be searched for one to close.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

Limit = Literal["address", "all"]


class Connection(Protocol):
    """A client's connection."""

    @property
    def network(self) -> str | None:
        """Whose it is: an address or IPv6 network; None: it is a proxy's, for many clients."""

    @property
    def is_dispensable(self) -> bool:
        """Whether it has nothing to receive or to answer."""

    @property
    def is_receiving(self) -> bool:
        """Whether it waits for a request, or for the rest of one."""

    def drop(self) -> None:
        """Close it at once."""


@dataclass(slots=True)
class _Network:
    """The connections of one network, oldest first, and those of them that can be closed, the longest idle first."""

    all: dict[Connection, None] = field(default_factory=dict)
    idle: dict[Connection, None] = field(default_factory=dict)


class OpenConnections:
    """The connections that count.

    For a new one beyond a limit, the one that has been idle longest is closed, of the same network or of all. If none
    is idle and all are full, one that still receives its request is: the oldest of the network with the most
    connections, if it has more than the new one's. So a few addresses with half-sent requests cannot take all places.
    A proxy's connections are not closed this way, since they may be of as many clients.

    Args:
        max_connections: of all clients.
        max_per_network: of one network; proxies have no limit of their own.
    """

    def __init__(self, max_connections: int, max_per_network: int) -> None:
        self._max_connections = max_connections
        self._max_per_network = max_per_network
        self._networks: dict[str | None, _Network] = {}
        self._idle: dict[Connection, None] = {}
        self._num_open = 0

    def add(self, new: Connection) -> Limit | None:
        """Add a connection. If there is no room for it, it is not added, and the limit that is reached is returned."""
        network = self._networks.get(new.network)
        num_same = 0 if network is None else len(network.all)
        if network is not None and new.network is not None and num_same >= self._max_per_network:
            if not self._drop_idle(network.idle):
                return "address"
            num_same -= 1
        is_full = self._num_open >= self._max_connections
        least = 1 if new.network is None else num_same + 1
        if is_full and not self._drop_idle(self._idle) and not self._drop_receiving(least):
            return "all"
        self._networks.setdefault(new.network, _Network()).all[new] = None
        self._num_open += 1
        self.note(new)
        return None

    def remove(self, gone: Connection) -> None:
        """Forget a connection that has ended, if it was one of these."""
        network = self._networks.get(gone.network)
        if network is None or gone not in network.all:
            return
        del network.all[gone]
        network.idle.pop(gone, None)
        self._idle.pop(gone, None)
        self._num_open -= 1
        if not network.all:
            del self._networks[gone.network]

    def note(self, changed: Connection) -> None:
        """Take note of what a connection does now. Whenever one becomes idle, it is the last to be closed."""
        network = self._networks.get(changed.network)
        if network is None or changed not in network.all:
            return
        for idle in (network.idle, self._idle):
            idle.pop(changed, None)
            if changed.is_dispensable:
                idle[changed] = None

    def _drop_idle(self, idle: dict[Connection, None]) -> bool:
        while idle:
            oldest = next(iter(idle))
            is_dispensable = oldest.is_dispensable  # not if it is being closed, with an answer still to be sent
            self.note(oldest)
            if is_dispensable:
                self.remove(oldest)
                oldest.drop()
                return True
        return False

    def _drop_receiving(self, least: int) -> bool:
        """Make room at the expense of the network with the most connections, if those are more than `least`."""
        networks = [each for name, each in self._networks.items() if name is not None and len(each.all) > least]
        for network in sorted(networks, key=lambda each: len(each.all), reverse=True):
            oldest = next((each for each in network.all if each.is_receiving), None)
            if oldest is not None:
                self.remove(oldest)
                oldest.drop()
                return True
        return False
