"""Places in the engine: for one prompt each, and who waits for them."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

RESERVE_SHARE = 16


def places_of(num_slots: int) -> int:
    """Slots to give away of this many: a few more if there are many, so that a free slot is used in the next step."""
    return num_slots + num_slots // RESERVE_SHARE


@dataclass(eq=False, slots=True)
class Place:
    """Permission to use the engine for one prompt, until it is released.

    Attributes:
        num_rows: most rows of the prompt's drafts.
        num_tokens: most tokens of a draft.
        num_slots: KV-cache slots that the prompt takes, at most. Rows decide what steps cost, slots how many prompts
            the engine can hold.
        is_added: whether the engine has heard of it.
        begun_s: when the prompt was admitted.
        is_warm_up: nobody waits for it, and it gives way to all others.
        last_step: the engine's step in which it should be finished.
    """

    leave: Callable[["Place"], None]
    loop: asyncio.AbstractEventLoop
    group: "Group"
    num_rows: int
    num_tokens: int
    num_slots: int
    session: str | None
    is_taken: bool = False
    is_added: bool = False
    is_long: bool = False
    is_warm_up: bool = False
    begun_s: float = 0.0
    last_step: float = 0.0

    def release(self) -> None:
        """Give the place back. Any thread may call this, more than once."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no request waits
            self.loop.call_soon_threadsafe(self.leave, self)


@dataclass(eq=False, slots=True)
class Waiter:
    """A prompt in the queue."""

    place: Place
    admitted: asyncio.Future[None]


@dataclass(eq=False, slots=True)
class Group:
    """An HTTP request. Its prompts are admitted one by one; once the first is, the others have no deadline."""

    request: object  # told apart by identity; held here, so that no other gets the same
    number: int
    caller: str
    session: str | None
    num_rows: int = 0
    num_places: int = 0
    is_begun: bool = False
    waiting: deque[Waiter] = field(default_factory=deque)
    timer: asyncio.TimerHandle | None = None
