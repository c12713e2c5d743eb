"""A typing session into which texts are typed key by key, with human pauses, on a simulated clock.

The session's clock advances by the pauses between keys and by the time each answer took, so that an hour of typing
takes only as long as its requests.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from superdraft.benchmarks.typist import Pauses, best_draft
from superdraft.client import Cancel, DraftsAnswer, Report, Send, SessionOptions, TypingSession

KEY_PAUSE_S = 0.15  # median of a log-normal; one pause in ten is longer than 0.34 s or shorter than 0.07 s
THINKING_CHANCE, THINKING_PAUSE_S = 0.2, 1.5  # median; after one word in five

Ask = Callable[[str], tuple[DraftsAnswer, float]]
"""Requests drafts for a prompt; returns the answer and the seconds it took."""


@dataclass(frozen=True, slots=True)
class Script:
    """A text to type; its first `num_given` characters exist already."""

    text: str
    num_given: int


@dataclass(slots=True)
class Tally:
    """The counts of a run.

    Attributes:
        num_keys: key presses, including those that accept.
        num_requests: requests sent.
        num_cancelled: requests cancelled.
        num_local: key presses after which a suggestion was shown at once.
        num_seen: key presses after which a suggestion was shown before the next key press.
        num_inconsistent: suggestions shown that do not continue the text as a draft of the server did.
        waits_ms: times from a key press without a suggestion to the first suggestion before the next key press.
        num_accepted: key presses that accepted a suggestion.
        num_accepted_characters: characters that were accepted instead of typed.
        events: reports by kind.
    """

    num_keys: int = 0
    num_requests: int = 0
    num_cancelled: int = 0
    num_local: int = 0
    num_seen: int = 0
    num_inconsistent: int = 0
    waits_ms: list[float] = field(default_factory=list)
    num_accepted: int = 0
    num_accepted_characters: int = 0
    events: Counter[str] = field(default_factory=Counter)


class Typist:
    """One user with one session.

    Args:
        ask: requests drafts.
        accepts: accept the ghost text, or its first word, when it matches what would be typed.
        max_keys: stop after this many key presses; None: when everything is typed.
        options: of the session.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        accepts: bool = False,
        max_keys: int | None = None,
        options: SessionOptions | None = None,
    ) -> None:
        self.tally = Tally()
        self._ask = ask
        self._accepts = accepts
        chance = random.Random(0)  # the same pauses in every run
        self._chance = chance
        self._pauses = Pauses(chance, KEY_PAUSE_S), Pauses(chance, THINKING_PAUSE_S)
        self._max_keys = math.inf if max_keys is None else max_keys
        self._now_s = 0.0
        self._session = TypingSession(options, lambda: self._now_s)
        self._answers: dict[int, tuple[float, DraftsAnswer]] = {}
        self._drafts: dict[tuple[str, int], str] = {}  # with the whole text before each draft
        self._waits_since_s: float | None = None

    def type(self, script: Script) -> None:
        """Type the rest of a text, in the same session as the texts before."""
        self._waits_since_s = None
        self._do(self._session.edit(script.text[: script.num_given]))
        while len(self._session.text) < len(script.text) and self.tally.num_keys < self._max_keys:
            thinks = self._session.text.endswith(" ") and self._chance.random() < THINKING_CHANCE
            self._wait(self._pauses[thinks].next_s())
            self._press(script.text)
        self._wait(THINKING_PAUSE_S)

    def close(self) -> None:
        """Close the session and count its last reports."""
        self._do(self._session.close())

    def _press(self, text: str) -> None:
        session, tally = self._session, self.tally
        typed, ghost = session.text, session.display.ghost
        rest = text[len(typed) :]
        tally.num_keys += 1
        self._waits_since_s = None
        parts = (ghost.text, ghost.first_word) if self._accepts and ghost is not None else ()
        is_word, length = best_draft(parts, rest, in_part=False)
        if length:
            self._do(session.accept_word() if is_word else session.accept())
            tally.num_accepted += 1
            tally.num_accepted_characters += length
        else:
            self._do(session.edit(typed + rest[0]))
        found = session.display.ghost is not None
        tally.num_local += found
        tally.num_seen += found
        self._waits_since_s = None if found else self._now_s

    def _wait(self, seconds: float) -> None:
        """Let time pass and handle the events in it."""
        until_s = self._now_s + seconds
        while True:
            arrival_s, request_id = min(
                ((at_s, request_id) for request_id, (at_s, _) in self._answers.items()), default=(math.inf, 0)
            )
            wake_s = self._session.wake_at_s
            wake_s = math.inf if wake_s is None else wake_s
            if min(arrival_s, wake_s) > until_s:
                break
            self._now_s = max(self._now_s, min(arrival_s, wake_s))
            if arrival_s <= wake_s:
                self._do(self._session.answered(request_id, self._answers.pop(request_id)[1]))
            else:
                self._do(self._session.advance())
        self._now_s = until_s

    def _do(self, actions: Sequence[object]) -> None:
        tally = self.tally
        for action in actions:
            match action:
                case Send():
                    tally.num_requests += 1
                    answer, seconds = self._ask(action.prompt)
                    self._answers[action.request_id] = self._now_s + seconds, answer
                    self._drafts |= {
                        (answer.id, draft.index): self._session.text + draft.text for draft in answer.drafts
                    }
                case Cancel():
                    tally.num_cancelled += 1
                    del self._answers[action.request_id]
                case Report():
                    tally.events[action.event] += 1
        display = self._session.display
        tally.num_inconsistent += sum(
            self._drafts.get(suggestion.key) != display.text + suggestion.text for suggestion in display.suggestions
        )
        if self._waits_since_s is not None and display.ghost is not None:
            tally.waits_ms.append((self._now_s - self._waits_since_s) * 1000)
            tally.num_seen += 1
            self._waits_since_s = None


def summary(tally: Tally) -> dict[str, Any]:
    """The figures of a run."""
    keys = max(tally.num_keys, 1)
    return {
        "key_presses": tally.num_keys,
        "requests": tally.num_requests,
        "requests_per_key": round(tally.num_requests / keys, 3),
        "cancelled": tally.num_cancelled,
        "answered_locally": round(tally.num_local / keys, 3),
        "suggestion_before_next_key": round(tally.num_seen / keys, 3),
        "inconsistent": tally.num_inconsistent,
        "accepted": tally.num_accepted,
        "accepted_characters": tally.num_accepted_characters,
        "reports": dict(sorted(tally.events.items())),
    }
