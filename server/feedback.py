"""Feedback: what users did with drafts. Events are matched to the drafts that were shown, and counted by rank.

The ranks, probabilities and lengths of each answer's drafts are remembered for a while, in memory. A draft that
continues in the next answers of a typing session is one draft: its events are counted once. With a file, each event is
also a line in it, to tune `min_probability_shown` by. Texts are neither kept nor logged.
"""

import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.outputs import DraftOutput
from superdraft.server.bridge.typists import Origin
from superdraft.server.edge.error_map import NotFoundError
from superdraft.server.observe.metrics import DraftEvent, Metrics

log = structlog.get_logger(__name__)

KEEP_S: Final = 900.0
MAX_COMPLETIONS: Final = 2048
"""Answers remembered per API key."""


class Outcome(NamedTuple):
    """The effect of an event.

    Attributes:
        rank: the draft's place among those of its run; 0 is the best.
        is_new: it was counted; a repeated event is not.
    """

    rank: int
    is_new: bool


class _Remembered(NamedTuple):
    """A draft: its rank, its probability if that is known, its length in characters, and where it appeared first."""

    rank: int
    probability: float | None
    num_characters: int
    origin: Origin


@dataclass(slots=True, eq=False)
class _Completion:
    """One answer: its drafts by their index, and the events counted so far with the draft's index."""

    since_s: float
    drafts: dict[int, "_Remembered"] = field(default_factory=dict)
    events: set[tuple[DraftEvent, int]] = field(default_factory=set)


_Completions = OrderedDict[str, _Completion]  # of one key, oldest first


class Feedback:
    """Remembers answers, and takes the events that belong to them. For one event loop.

    Args:
        metrics: where events are counted.
        file: where events are appended, as JSON lines; None: nowhere.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._file = file
        self._clock = clock
        self._callers: dict[str, _Completions] = {}

    def remember(
        self,
        caller: str,
        completion_id: str,
        drafts: Sequence[DraftOutput],
        *,
        first_index: int = 0,
        first_rank: int = 0,
        are_probabilities: bool = False,
        origins: Sequence[Origin] | None = None,
    ) -> None:
        """Keep the drafts of an answer, or of one of its prompts, for events to come.

        Args:
            caller: name of the request's key; empty for none.
            completion_id: of the answer.
            drafts: the drafts in the answer.
            first_index: the index of the first of them in the answer.
            first_rank: its rank among the drafts of its run, above 0 if the run was shared with other requests.
            are_probabilities: whether exp(score) is the probability of a draft's first word.
            origins: the answer in which each draft appeared first, and its index there; None: all of them in this one.
        """
        completions = self._callers.setdefault(caller, OrderedDict())
        completion = completions.setdefault(completion_id, _Completion(self._clock()))
        for place, draft in enumerate(drafts):
            probability = math.exp(min(draft.score, 0.0)) if are_probabilities else None
            index = first_index + draft.index
            origin = (completion_id, index) if origins is None else origins[place]
            completion.drafts[index] = _Remembered(first_rank + draft.index, probability, len(draft.text), origin)
        self._forget()

    def take(
        self, completion_id: str, event: DraftEvent, index: int = 0, *, caller: str = "", elapsed_s: float | None = None
    ) -> Outcome:
        """Count an event, once however often it is sent.

        Args:
            completion_id: of an answer to the same key.
            event: what the user did.
            index: of the draft in the answer.
            caller: name of the request's key; empty for none.
            elapsed_s: seconds since the draft was shown.

        Raises:
            NotFoundError: no such answer is remembered.
            InvalidRequestError: the answer has no draft of this index.
        """
        completion = self._find(caller, completion_id)
        draft = completion.drafts.get(index)
        if draft is None:
            message = (
                f"index must be that of a draft of the completion, which has {len(completion.drafts)}; got {index}."
            )
            raise InvalidRequestError(message, param="index")
        first_id, first_index = draft.origin
        first = self._callers[caller].get(first_id, completion)
        is_new = (event, first_index) not in first.events
        if is_new:
            first.events.add((event, first_index))
            self._metrics.count_draft_event(event, draft.rank, elapsed_s)
            self._record(completion_id, index, event, draft)
        return Outcome(draft.rank, is_new)

    def _record(self, completion_id: str, index: int, event: DraftEvent, draft: _Remembered) -> None:
        """Append an event to the file. A few bytes to the system's cache take no time that other requests notice."""
        if self._file is None:
            return
        figures = {name: value for name, value in draft._asdict().items() if name != "origin"}
        line = {"completion_id": completion_id, "index": index, "event": event, **figures}
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            log.warning("feedback_not_recorded", reason=error.strerror)

    def _find(self, caller: str, completion_id: str) -> _Completion:
        self._forget()
        completions = self._callers.get(caller)
        completion = completions.get(completion_id) if completions is not None else None
        if completion is None:
            message = (
                f"completion_id names no answer to this key within the last {KEEP_S / 60:g} minutes; the latest "
                f"{MAX_COMPLETIONS} are remembered until the server stops."
            )
            raise NotFoundError(message, param="completion_id", code="completion_not_found")
        return completion

    def _forget(self) -> None:
        """Drop each key's answers that are too old or too many, oldest first."""
        before_s = self._clock() - KEEP_S
        for caller, completions in list(self._callers.items()):
            while completions:
                oldest = next(iter(completions.values()))
                if len(completions) <= MAX_COMPLETIONS and oldest.since_s >= before_s:
                    break
                completions.popitem(last=False)
            if not completions:
                del self._callers[caller]
