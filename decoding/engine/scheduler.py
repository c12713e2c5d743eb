"""The scheduler: which requests take part in the next step, and with how many tokens of their prompts."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from superdraft.decoding.engine.faults import Faults
from superdraft.decoding.engine.sequence import Branch, Sequence
from superdraft.decoding.engine.trees import Trees


@dataclass(frozen=True, slots=True)
class Work:
    """What a step does.

    Attributes:
        branches: rows to decode, request after request.
        prompts: requests whose prompts are run, each with the number of tokens, which is 0 if all have been found.
    """

    branches: list[Branch]
    prompts: list[tuple[Sequence, int]]

    @property
    def sequences(self) -> list[Sequence]:
        """The requests that take part, each once."""
        decoded = [branch.sequence for branch in self.branches]
        return list(dict.fromkeys([*decoded, *(sequence for sequence, _ in self.prompts)]))


class Scheduler:
    """Who has waited longest goes first. A step decodes a row of every running branch and runs some tokens of prompts.

    A typist has waited since the last drafts, even if later requests replaced the first one; everybody else since the
    request came. So those who type fast do not keep the slots from the others. If there are too many typists to answer
    them all before their next keys, only as many requests run as can be answered: otherwise no typist would see drafts.

    A limited number of prompt tokens takes part in a step. All waiting prompts that fit are run together:
    typists send many prompts with one or two new tokens each, and one pass over the weights serves them all. A longer
    prompt is cut into chunks, one such prompt at a time. It takes turns with the short ones, so that neither running
    drafts nor short prompts nor the long prompt itself have to wait for long.

    Prompts that only warm up the cache are run one by one while nothing else is to do.

    Args:
        trees: give requests their slots.
        on_begin: called with each request that begins, before its prompt tokens are counted.

    Attributes:
        running: the requests whose prompts are complete.
    """

    def __init__(self, trees: Trees, on_begin: Callable[[Sequence], None] = lambda _: None) -> None:
        self._trees = trees
        self._on_begin = on_begin
        self._waiting: list[Sequence] = []
        self._warm_ups: list[Sequence] = []
        self._long: Sequence | None = None
        self.running: list[Sequence] = []
        self._long_is_next = False

    @property
    def without_slot(self) -> Collection[Sequence]:
        """The requests that wait because no slot is free."""
        is_free = not self._waiting or self._trees.can_begin(self._waiting[0])
        return () if is_free else self._waiting

    @property
    def num_waiting(self) -> int:
        """Requests without a slot; those that only warm up are not counted, because no user waits for them."""
        return len(self._waiting)

    @property
    def num_rows(self) -> int:
        """Rows that the next step decodes."""
        return sum(not branch.is_done for sequence in self.running for branch in sequence.branches)

    def add(self, sequence: Sequence) -> None:
        """Queue a new request. It must not need more slots than there are."""
        (self._warm_ups if sequence.request.is_warm_up else self._waiting).append(sequence)

    def schedule(
        self, now_s: float, max_prompt_tokens: int, faults: Faults, most_running: float = math.inf
    ) -> Work | None:
        """Decide what the next step does, and give the requests that begin their slots; None: there is nothing to do.

        Args:
            now_s: the clock now.
            max_prompt_tokens: prompt tokens of the step.
            faults: records the requests that cannot begin; they take part in the step nevertheless.
            most_running: if so many requests run, no typist's request begins.
        """
        branches = [branch for sequence in self.running for branch in sequence.branches if not branch.is_done]
        prompts = self._next_prompts(now_s, max_prompt_tokens, faults, most_running)
        if not branches and not prompts:
            prompts = self._next_warm_up(now_s, max_prompt_tokens)
        return Work(branches, prompts) if branches or prompts else None

    def _next_prompts(
        self, now_s: float, max_tokens: int, faults: Faults, most_running: float
    ) -> list[tuple[Sequence, int]]:
        if not self._long_is_next or self._long is None:
            prompts = self._short_prompts(now_s, max_tokens, faults, most_running)
            if prompts:
                self._long_is_next = True
                return prompts
        self._long_is_next = False
        if self._long is None:
            return []
        return [(self._long, min(self._long.num_unfed_tokens, max_tokens))]

    def _short_prompts(
        self, now_s: float, max_tokens: int, faults: Faults, most_running: float
    ) -> list[tuple[Sequence, int]]:
        """Begin waiting requests whose prompts fit in the step, and at most one with a long prompt."""
        prompts: list[tuple[Sequence, int]] = []
        room = max_tokens
        self._waiting.sort(key=lambda one: one.waiting_since_s)  # stable: of equal ones the first that came
        while self._waiting and self._trees.can_begin(self._waiting[0]):
            sequence = self._waiting[0]
            if sequence.request.key_gap_s is not None and len(self.running) + len(prompts) >= most_running:
                break
            match = self._trees.find(sequence)
            num_unfed = len(sequence.prompt_token_ids) - match.length
            if num_unfed > max_tokens:
                if self._long is not None:
                    break
                self._long = self._waiting.pop(0)
                self._trees.begin(self._long, match, now_s)
                continue
            if num_unfed > room:
                break
            self._waiting.pop(0)
            self._trees.begin(sequence, match, now_s)
            with faults.ending(sequence):
                self._on_begin(sequence)
            num_unfed = sequence.num_unfed_tokens
            room -= num_unfed
            prompts.append((sequence, num_unfed))
        return prompts

    def _next_warm_up(self, now_s: float, max_tokens: int) -> list[tuple[Sequence, int]]:
        if not self._warm_ups:
            return []
        sequence = self._warm_ups[0]
        if not sequence.trees:
            if not self._trees.can_begin(sequence):
                return []
            self._trees.begin(sequence, self._trees.find(sequence), now_s)
        return [(sequence, min(sequence.num_unfed_tokens, max_tokens))]

    def start(self, sequence: Sequence, now_s: float) -> None:
        """Let a request whose prompt is complete run. The time limit of its drafts begins."""
        request = sequence.request
        if request.draft_timeout_s is not None:
            own_s = math.inf if request.deadline_s is None else request.deadline_s
            sequence.deadline_s = min(own_s, now_s + request.draft_timeout_s)
        if sequence is self._long:
            self._long = None
        if sequence in self._warm_ups:
            self._warm_ups.remove(sequence)
        self.running.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a request in any state."""
        if sequence is self._long:
            self._long = None
        elif sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        elif sequence in self._warm_ups:
            self._warm_ups.remove(sequence)
