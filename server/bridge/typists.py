"""Typists: all that is remembered about a typing session, its requests, and which of them replace which."""

import asyncio
import contextlib
import hashlib
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from superdraft.decoding.errors import SupersededError

# Callers, typists and tickets hold one another, so these classes have no repr: it would print all that are remembered.

MAX_TYPISTS = 4096
REMEMBERED_S = 10.0
"""Seconds after a request during which room is kept for the next one of its caller or typist."""

LONGEST_WAIT_S = 10.0
"""A typist whose wait for drafts would be longer has paused."""

_LONGEST_GAP_S = 1.0  # a longer pause is for thought, and says nothing about the next one
_SMOOTHING = 1 / 8

Origin = tuple[str, int]
"""The answer in which a draft appeared first, and its index there."""


def superseded() -> SupersededError:
    """The error of a request that a newer one of its typist replaces."""
    return SupersededError("A newer request of this session replaced this one.")


@dataclass(eq=False, repr=False, slots=True)
class Share:
    """What somebody has of the engine, and asked for last.

    Attributes:
        num_rows: rows in the engine.
        asked_rows: rows of the latest request.
        asked_s: when it came, on the loop's clock.
    """

    num_rows: int = 0
    asked_rows: int = 0
    asked_s: float = -math.inf


@dataclass(eq=False, repr=False, slots=True)
class Caller(Share):
    """Whoever uses one API key, or one network address on a server without keys.

    Attributes:
        name: of the caller.
        typists: by session; the one that was heard of last comes last.
    """

    name: str = ""
    typists: OrderedDict[str, "Typist"] = field(default_factory=OrderedDict)


@dataclass(frozen=True, slots=True)
class _Answer:
    """The latest answer. Of its prompt only a digest is kept."""

    num_characters: int
    digest: bytes
    drafts: tuple[tuple[str, Origin], ...]


@dataclass(eq=False, repr=False, slots=True)
class Typist(Share):
    """One typing session of a caller. All requests without a session are one typist's too, who replaces nothing.

    Attributes:
        caller: whose session it is.
        session: its name; empty: the requests that name none.
        gap_s: the usual seconds between its keys; None: there were no two requests in a row.
        waiting_since_s: when its wait for drafts began; None: the latest ones have come.
        tickets: its requests in the engine, oldest first.
        waiter: its request in the queue.
    """

    caller: Caller = field(default_factory=Caller)
    session: str = ""
    gap_s: float | None = None
    waiting_since_s: float | None = None
    tickets: list["Ticket"] = field(default_factory=list)
    waiter: "Ticket | None" = None
    _last_key_s: float | None = None
    _answer: _Answer | None = None
    _num_on_their_way: int = 0
    _num_arrived: int = 0
    _newest_gone: int = 0  # its number, counted by arrival

    @property
    def is_active(self) -> bool:
        """Whether it has a request in the engine or on the way there."""
        return bool(self.num_rows or self.tickets or self._num_on_their_way)

    @contextlib.contextmanager
    def arrival(self, now_s: float) -> Iterator[Callable[[], None]]:
        """The way of a request to the engine. None gets there after a newer one.

        Args:
            now_s: the loop's clock now.

        Yields:
            A function to call when the request goes to the engine. It raises SupersededError if a newer one has gone
            there.
        """
        if not self.session:
            yield lambda: None
            return
        self._note_key(now_s)
        self._num_on_their_way += 1
        self._num_arrived += 1
        number = self._num_arrived

        def go() -> None:
            if self._newest_gone > number:
                raise superseded()
            self._newest_gone = number
            if self.waiting_since_s is None or now_s - self.waiting_since_s > LONGEST_WAIT_S:
                self.waiting_since_s = now_s

        try:
            yield go
        finally:
            self._num_on_their_way -= 1

    def _note_key(self, now_s: float) -> None:
        gap_s = math.inf if self._last_key_s is None else now_s - self._last_key_s
        self._last_key_s = now_s
        if gap_s <= _LONGEST_GAP_S:
            self.gap_s = gap_s if self.gap_s is None else self.gap_s + _SMOOTHING * (gap_s - self.gap_s)

    def answered(self, prompt: str, drafts: Sequence[str], completion_id: str) -> list[Origin]:
        """Where each draft of an answer appeared first, which may be in this answer.

        Whoever types on as a draft says gets the rest of that draft with the next key. It is one suggestion, which is
        shown once and accepted once, though it is part of several answers.

        Args:
            prompt: the text before the drafts.
            drafts: their texts, in order of their indices.
            completion_id: of the answer.
        """
        known, typed, origins = self._answer, "", list[Origin]()
        if known is not None and _digest(prompt[: known.num_characters]) == known.digest:
            typed = prompt[known.num_characters :]
        else:
            known = None
        for index, draft in enumerate(drafts):
            agreeing = (
                old
                for before, old in (() if known is None else known.drafts)
                # What follows a draft that was typed or accepted as a whole is another one.
                if len(typed) < len(before) and ((typed + draft).startswith(before) or before.startswith(typed + draft))
            )
            origins.append(next((old for old in agreeing if old not in origins), (completion_id, index)))
        self._answer = _Answer(len(prompt), _digest(prompt), tuple(zip(drafts, origins, strict=True)))
        return origins


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


class Typists:
    """The typists of all callers; those of which nothing was heard longest are forgotten. For one event loop."""

    def __init__(self) -> None:
        self._callers: OrderedDict[str, Caller] = OrderedDict()
        self._num_typists = 0

    def of(self, caller: str = "", session: str | None = None) -> Typist:
        """The typist of whom a request comes."""
        who = self._callers.setdefault(caller, Caller(name=caller))
        self._callers.move_to_end(caller)
        typist = who.typists.get(session or "")
        if typist is None:
            typist = who.typists[session or ""] = Typist(caller=who, session=session or "")
            self._num_typists += 1
            if self._num_typists > MAX_TYPISTS:
                # Who invents sessions makes the server forget none but their own.
                self._forget_one([who] if len(who.typists) > MAX_TYPISTS // 2 else self._callers.values())
        who.typists.move_to_end(session or "")
        return typist

    def _forget_one(self, callers: Iterable[Caller]) -> None:
        for caller in callers:
            idle = next((typist for typist in caller.typists.values() if not typist.is_active), None)
            if idle is not None:
                del caller.typists[idle.session]
                self._num_typists -= 1
                if not caller.typists:
                    del self._callers[caller.name]
                return

    def kept_for_others(self, typist: Typist, now_s: float, most_rows: int) -> tuple[int, int]:
        """The room that a typist must leave free for others, in rows and in requests.

        Someone who has rows leaves room for everyone else who has none and asked recently: a row that was given cannot
        be taken back before its draft ends. Whoever is alone may have everything.

        Args:
            typist: whose request it is.
            now_s: the loop's clock now.
            most_rows: that are kept free.
        """
        caller = typist.caller
        among_callers = _kept(caller, reversed(self._callers.values()), now_s, most_rows)
        return max(among_callers, _kept(typist, reversed(caller.typists.values()), now_s, most_rows))


def _kept(own: Share, everyone: Iterable[Share], now_s: float, most_rows: int) -> tuple[int, int]:
    rows = requests = 0
    if own.num_rows:
        for other in everyone:
            if now_s - other.asked_s > REMEMBERED_S or rows >= most_rows:
                break
            if other is not own and not other.num_rows:
                rows += other.asked_rows
                requests += 1
    return min(rows, most_rows), requests


@dataclass(eq=False, repr=False, slots=True)
class Group:
    """An HTTP request. Its prompts are admitted one by one; once the first is, the others have no deadline."""

    request: object  # distinguished by identity; held here, so that no other gets the same
    number: int
    typist: Typist
    num_rows: int = 0
    num_tickets: int = 0
    is_begun: bool = False
    waiting: deque["Ticket"] = field(default_factory=deque)
    timer: asyncio.TimerHandle | None = None


@dataclass(eq=False, repr=False, slots=True)
class Ticket:
    """Permission to use the engine for one prompt, until it is released; before that, the prompt's wait for it.

    Attributes:
        num_rows: most rows of the prompt's drafts.
        num_tokens: most tokens of a draft.
        num_slots: KV-cache slots that the prompt takes, at most. Rows decide what steps cost, slots how many prompts
            the engine can hold.
        is_warm_up: no user waits for it, and it gives way to all others.
        admitted: done when it has been let in or refused.
        is_taken: whether it has been let in, and has not been released.
        is_added: whether the engine has heard of it.
        begun_s: when the prompt was admitted.
        last_step: the engine's step in which it should be finished.
    """

    leave: Callable[["Ticket"], None]
    group: Group
    num_rows: int
    num_tokens: int
    num_slots: int
    is_warm_up: bool
    loop: asyncio.AbstractEventLoop
    admitted: asyncio.Future[None]
    is_taken: bool = False
    is_added: bool = False
    is_long: bool = False
    begun_s: float = 0.0
    last_step: float = 0.0

    @property
    def typist(self) -> Typist:
        """Whose prompt it is."""
        return self.group.typist

    def release(self) -> None:
        """Give the ticket back. Any thread may call this, more than once."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no request waits
            self.loop.call_soon_threadsafe(self.leave, self)
