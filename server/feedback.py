"""What users do with drafts: each event is joined to the draft that was shown, counted by its rank, and learned from.

Of each answer its drafts' ranks are remembered for a while; their texts only where a personal model may learn them.
All of it stays in memory, and none of it is logged.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.outputs import DraftOutput
from superdraft.ngram_models.scoring.personal import AcceptedText
from superdraft.server.bridge.fan_out import FanOut
from superdraft.server.edge.access import current_caller
from superdraft.server.edge.error_map import NotFoundError
from superdraft.server.ngrams.personal_models import Owner, PersonalModels, owner_of
from superdraft.server.observe.metrics import DraftEvent, Metrics
from superdraft.server.wires.common import Prompt

KEEP_S: Final = 900.0
MAX_COMPLETIONS: Final = 2048
MAX_CHARACTERS: Final = 2_000_000
"""Of the texts that are remembered of one key's completions."""


class Asked(NamedTuple):
    """A request for a completion.

    Attributes:
        completion_id: of the answer.
        caller: name of the key; empty for none.
        owner: whose model may learn; None: nobody's.
        prompts: what stood before the cursor. Texts are remembered only if there is an owner.
    """

    completion_id: str
    caller: str
    owner: Owner | None
    prompts: Sequence[Prompt]


class Outcome(NamedTuple):
    """What became of an event.

    Attributes:
        rank: of the draft among those of its run; 0 is the best.
        is_new: it was counted; a repeated one is not.
        is_learned: the user's model learned the draft, now or when the event came first.
    """

    rank: int
    is_new: bool
    is_learned: bool


class _Choice(NamedTuple):
    rank: int
    text: AcceptedText | None


@dataclass(slots=True, eq=False)
class _Completion:
    """One answer, and the events of it so far: those that were learned from map to True."""

    since_s: float
    owner: Owner | None
    choices: dict[int, _Choice] = field(default_factory=dict)
    events: dict[tuple[DraftEvent, int], bool] = field(default_factory=dict)
    num_characters: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True, eq=False)
class _Caller:
    """The completions of one key, the oldest first."""

    completions: OrderedDict[str, _Completion] = field(default_factory=OrderedDict)
    num_characters: int = 0

    def forget(self, before_s: float) -> None:
        """Drop what is older, and the oldest of what is too much."""
        while self.completions:
            oldest = next(iter(self.completions.values()))
            is_too_much = len(self.completions) > MAX_COMPLETIONS or self.num_characters > MAX_CHARACTERS
            if not is_too_much and oldest.since_s >= before_s:
                return
            self.completions.popitem(last=False)
            self.num_characters -= oldest.num_characters


class Feedback:
    """Remembers answers, and takes the events that belong to them. For one event loop.

    Args:
        metrics: where events are counted.
        fan_out: knows the rank of a draft that came of a shared run.
        personal: learns accepted drafts; None: there are no personal models.
        is_on: False: nothing is remembered, and no event is taken.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        fan_out: FanOut,
        personal: PersonalModels | None = None,
        *,
        is_on: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._fan_out = fan_out
        self._personal = personal
        self._is_on = is_on
        self._clock = clock
        self._callers: dict[str, _Caller] = {}

    def asked(self, completion_id: str, prompts: Sequence[Prompt], user: str | None = None) -> Asked:
        """What `remember` needs of the request that is being answered."""
        caller = current_caller()
        is_allowed = self._personal is not None and self._personal.allows(caller)
        return Asked(completion_id, caller, owner_of(caller, user) if is_allowed else None, prompts)

    def remember(
        self, asked: Asked, drafts: Sequence[DraftOutput], prompt_index: int = 0, first_index: int = 0
    ) -> None:
        """Keep the drafts of an answer, or of one of its prompts, for the events that may come.

        Args:
            asked: the request.
            drafts: those that are shown.
            prompt_index: which of the request's prompts they go on from.
            first_index: the index of the first of them in the answer.
        """
        if not self._is_on:
            return
        caller = self._callers.setdefault(asked.caller, _Caller())
        completion = caller.completions.get(asked.completion_id)
        if completion is None:
            completion = _Completion(self._clock(), asked.owner)
            caller.completions[asked.completion_id] = completion
        before = None
        if self._personal is not None and asked.owner is not None:
            before = self._personal.end_of(asked.prompts[prompt_index])
        for draft in drafts:
            rank = self._fan_out.rank_of(asked.completion_id, draft.index)
            text = None if before is None or not draft.text else AcceptedText(before, draft.text)
            completion.choices[first_index + draft.index] = _Choice(rank, text)
            num_characters = 0 if text is None else len(text.before) + len(text.text)
            completion.num_characters += num_characters
            caller.num_characters += num_characters
        self._forget()

    async def take(
        self,
        completion_id: str,
        event: DraftEvent,
        index: int = 0,
        *,
        elapsed_s: float | None = None,
        part: Callable[[str], str] = str,
    ) -> Outcome:
        """Count an event, once however often it comes, and learn a draft that was accepted.

        Args:
            completion_id: of an answer to the same key.
            event: what the user did.
            index: of the draft in the answer.
            elapsed_s: how long after it was shown.
            part: what of the draft's text was accepted.

        Raises:
            NotFoundError: no such answer is remembered.
            InvalidRequestError: the answer has no draft of this index.
            OSError: an accepted draft could not be written to the disk; nothing was counted.
        """
        completion = self._find(completion_id)
        choice = completion.choices.get(index)
        if choice is None:
            message = (
                f"index must be that of a draft of the completion, which has {len(completion.choices)}, got {index}."
            )
            raise InvalidRequestError(message, param="index")
        async with completion.lock:  # the same event may come twice at once
            if (event, index) in completion.events:
                return Outcome(choice.rank, is_new=False, is_learned=completion.events[event, index])
            is_learned = event == "accepted" and await self._learn(completion.owner, choice.text, part)
            completion.events[event, index] = is_learned
        self._metrics.count_draft_event(event, choice.rank, elapsed_s)
        return Outcome(choice.rank, is_new=True, is_learned=is_learned)

    def _find(self, completion_id: str) -> _Completion:
        if not self._is_on:
            message = "This server takes no feedback; start it with --feedback."
            raise NotFoundError(message, param="completion_id", code="feedback_off")
        self._forget()
        caller = self._callers.get(current_caller())
        completion = caller.completions.get(completion_id) if caller is not None else None
        if completion is None:
            message = (
                f"completion_id names no answer to this key of the last {KEEP_S / 60:g} minutes; the latest "
                f"{MAX_COMPLETIONS} are remembered, until the server stops."
            )
            raise NotFoundError(message, param="completion_id", code="completion_not_found")
        return completion

    async def _learn(self, owner: Owner | None, text: AcceptedText | None, part: Callable[[str], str]) -> bool:
        if self._personal is None or owner is None or text is None:
            return False
        accepted = text._replace(text=part(text.text))
        if not accepted.text:
            return False
        await self._personal.learn(owner, accepted)
        return True

    def _forget(self) -> None:
        before_s = self._clock() - KEEP_S
        for name, caller in list(self._callers.items()):
            caller.forget(before_s)
            if not caller.completions:
                del self._callers[name]
