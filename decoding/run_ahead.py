"""Decoding that keeps the device busy: a step is started before the host has looked at the one before it.

The branches' drafts on the host stay the truth. The device goes on with what it has chosen; the host builds the same
children, with their texts, while the next step runs. Where it comes to something else, because a draft repeats
another's text, say, or meets a stop string, what the device has done of that branch since is not looked at: the branch
is written to the device again, and its next step writes over the position that the void one wrote.
"""

import weakref
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from superdraft.decoding.branches import BranchSteps
from superdraft.decoding.choosing import TokenChooser, drafts_wanted, samples
from superdraft.decoding.device_choice import most_candidates
from superdraft.decoding.device_rows import Column, RowKind
from superdraft.decoding.device_steps import WIDTHS, DeviceRow, DeviceSteps, Launch
from superdraft.decoding.draft_set import Draft, DraftSet, keep_best, scored
from superdraft.decoding.errors import SequenceFailedError
from superdraft.decoding.scheduler import Scheduler
from superdraft.decoding.scoring import Candidates, Floats
from superdraft.decoding.sequence import Branch, Sequence


@dataclass(slots=True)
class StepEnd:
    """What a step came to.

    Attributes:
        sequences: the requests that got a token, or failed.
        faults: those among them that failed.
    """

    sequences: list[Sequence] = field(default_factory=list)
    faults: dict[Sequence, Exception] = field(default_factory=dict)


def failed_step(branches: Seq[Branch], fault: Exception) -> StepEnd:
    """All requests of these branches failed."""
    sequences = list(dict.fromkeys(branch.sequence for branch in branches))
    return StepEnd(sequences, dict.fromkeys(sequences, fault))


@dataclass(slots=True)
class _Children:
    """The best children of a branch's drafts, best first: one entry each, shape [L]. A score of -inf: there is none."""

    scores: Floats
    parents: list[int]
    token_ids: list[int]
    logprobs: Floats
    made: list[Draft] = field(default_factory=list)

    def of(self, branch: Branch) -> Iterator[Draft]:
        """Build them one by one; those that were built are in `made`."""
        alive, extend = branch.drafts.alive, branch.sequence.extend
        for score, parent, token_id, logprob in zip(
            self.scores.tolist(), self.parents, self.token_ids, self.logprobs.tolist(), strict=True
        ):
            if score == -np.inf:
                return
            self.made.append(scored(extend(alive[parent], token_id), score, logprob))
            yield self.made[-1]

    def places_of(self, drafts: Seq[Draft]) -> list[int]:
        """Where these are among them, which were built here."""
        place_of = {id(child): place for place, child in enumerate(self.made)}
        return [place_of[id(draft)] for draft in drafts]


class RunAhead:
    """Decode steps on the device, and what the host makes of them.

    Args:
        device: runs them.
        steps: what else happens to a branch.
        chooser: chooses tokens where the device cannot.
        scheduler: knows which requests will fork.
        eos_token_ids: what ends a text.
    """

    def __init__(
        self,
        device: DeviceSteps,
        steps: BranchSteps,
        chooser: TokenChooser,
        scheduler: Scheduler,
        eos_token_ids: frozenset[int],
    ) -> None:
        self._device = device
        self._steps = steps
        self._chooser = chooser
        self._scheduler = scheduler
        self._eos_token_ids = eos_token_ids
        self._ahead: Launch | None = None
        self._for_host: weakref.WeakSet[Branch] = weakref.WeakSet()

    def can_step(self, branches: Seq[Branch]) -> bool:
        """Whether a step of these branches is the device's; if not, it has let go of them all."""
        if self._ahead is not None or all(self._fits(branch) for branch in branches):
            return True
        for branch in branches:
            branch.device_row = None
        return False

    def step(self, branches: Seq[Branch]) -> StepEnd:
        """One step of all running branches; those that joined after it was started wait for the next one.

        Args:
            branches: those of slots [0, B), in that order.
        """
        launch, self._ahead = self._ahead, None
        try:
            if launch is None:
                launch = self._start(branches)
            if self._may_run_ahead(launch, branches):
                self._ahead = self._start(branches)
            results = launch.results()
            host_choices = self._host_choices(launch)
        except Exception as fault:  # out of memory, say: all that were in this pass are lost, those that wait are not
            self._ahead = None
            return failed_step(branches, fault)
        end = StepEnd()
        progressed: dict[Sequence, None] = {}
        for branch, row, result in zip(launch.branches, launch.rows, results, strict=True):
            if not _follows(branch, row):
                continue
            try:
                is_through = True
                if row.kind == RowKind.HOST:
                    self._choose_on_host(branch, *host_choices[branch])
                else:
                    is_through = self._follow(branch, row, result)
            except Exception as fault:  # an n-gram model from outside may raise anything
                self._let_go(branch)
                end.faults[branch.sequence] = fault
                is_through = True
            if is_through:
                progressed[branch.sequence] = None
        end.sequences = list(progressed)
        return end

    def drop(self) -> None:
        """Forget a step that is under way, since nobody is left who wants it."""
        self._ahead = None

    # Starting steps

    def _start(self, branches: Seq[Branch]) -> Launch:
        return self._device.launch(
            branches, [(branch, self._kind(branch)) for branch in branches if branch.device_row is None]
        )

    def _may_run_ahead(self, launch: Launch, branches: Seq[Branch]) -> bool:
        """Whether the next step needs nothing of what the host will make of this one, and somebody wants it."""
        if any(row.kind == RowKind.HOST for row in launch.rows):
            return False
        goes_on = False
        under_way = {branch for branch, row in zip(launch.branches, launch.rows, strict=True) if _follows(branch, row)}
        for branch in branches:
            if branch not in under_way:
                if not self._fits(branch):
                    return False
                goes_on = True
            elif branch.num_new + 1 < branch.sequence.params.max_tokens:
                goes_on |= branch.num_computed + 1 < branch.sequence.max_positions
        return goes_on

    def _kind(self, branch: Branch) -> RowKind:
        """Who chooses the branch's next tokens."""
        sequence, alive = branch.sequence, branch.drafts.alive
        params = sequence.params
        if branch in self._for_host or any(draft.healing for draft in alive):
            return RowKind.HOST
        if params.logit_bias or params.frequency_penalty or params.presence_penalty or params.reset_every is not None:
            return RowKind.HOST
        if branch.is_joining and params.num_rows > 1:
            return RowKind.HOST  # which forks it
        if samples(branch):
            # It will not be sampled for long.
            return RowKind.HOST if params.strategy == "sample+superposed" else RowKind.SAMPLED
        places = next((width for width in WIDTHS if width >= params.drafts_per_branch), 0)
        if params.num_candidates > most_candidates(places) or not self._device.holds(sequence.scorer):
            return RowKind.HOST
        if params.selection != "distinct":
            return RowKind.SUPERPOSED
        num_begun = sum(bool(draft.text) for draft in branch.drafts.finished) + len(alive)
        is_settled = all(draft.start for draft in alive) and num_begun >= drafts_wanted(branch)
        return RowKind.OWN if is_settled and not self._scheduler.num_kept_slots(sequence) else RowKind.HOST

    def _fits(self, branch: Branch) -> bool:
        params = branch.sequence.params
        return max(len(branch.drafts.alive), params.drafts_per_branch) <= WIDTHS[-1]

    # What the host makes of them

    def _follow(self, branch: Branch, row: DeviceRow, result: Floats) -> bool:
        """Build the children that the device has found.

        Returns:
            Whether the branch got its tokens; else the host will choose them, in a step of their own.
        """
        children = _children_in(result)
        if not np.isfinite(result[0]) or children.scores[0] == -np.inf:
            raise SequenceFailedError(
                "The model's output holds values that are not numbers; this request cannot go on."
            )
        chosen = None if np.isnan(children.scores[0]) else self._chosen(branch, row, children)
        if chosen is None:
            if row.is_drawn:
                _take_back_number(branch)
            self._let_go(branch)
            self._for_host.add(branch)
            return False
        branch.count_step()
        if branch.is_joining:
            self._steps.end_prompt(branch)
        agrees = self._taken_by_device(row, children) == children.places_of(chosen.alive)
        self._chooser.settle(branch, chosen)
        if branch.is_done or not agrees or self._kind(branch) != row.kind:
            self._let_go(branch)
        return True

    def _chosen(self, branch: Branch, row: DeviceRow, children: _Children) -> DraftSet | None:
        """The next drafts; None if it takes more children than the device gave."""
        built = children.of(branch)
        if row.kind == RowKind.SUPERPOSED:
            chosen = keep_best(branch.drafts, built, branch.sequence.params.drafts_per_branch)
            is_cut = children.scores[-1] > -np.inf and next(built, None) is None
            return None if is_cut else chosen
        found = [next(built)] if row.kind == RowKind.SAMPLED else list(built)
        ended = (child for child in found if child.finish_reason is not None)
        finished = sorted((*branch.drafts.finished, *ended), key=lambda draft: -draft.logprob)
        return DraftSet(tuple(child for child in found if child.finish_reason is None), tuple(finished))

    def _taken_by_device(self, row: DeviceRow, children: _Children) -> list[int]:
        """The children that the device goes on with: the best ones that are no end of text, by their tokens alone."""
        found = zip(children.token_ids, children.scores.tolist(), strict=True)
        ends = self._eos_token_ids
        alive = [place for place, (token_id, score) in enumerate(found) if score > -np.inf and token_id not in ends]
        return alive[: int(row.columns[Column.NUM_DRAFTS])]

    def _host_choices(self, launch: Launch) -> dict[Branch, tuple[Tensor, Candidates]]:
        """The logits [V] and candidates of the rows whose tokens the host chooses."""
        rows = enumerate(zip(launch.branches, launch.rows, strict=True))
        places = {branch: i for i, (branch, row) in rows if row.kind == RowKind.HOST and _follows(branch, row)}
        if not places:
            return {}
        logits = self._device.logits(list(places.values()))
        candidates = self._chooser.shared_candidates(logits, list(places))
        return dict(zip(places, zip(logits, candidates, strict=True), strict=True))

    def _choose_on_host(self, branch: Branch, logits: Tensor, candidates: Candidates) -> None:
        self._let_go(branch)
        self._for_host.discard(branch)
        self._steps.take_step(branch, logits, candidates)

    def _let_go(self, branch: Branch) -> None:
        """The device's row of this branch is of no use any more, nor is what it has already started of it."""
        row, branch.device_row = branch.device_row, None
        if row is not None and row.is_drawn and self._ahead is not None and branch in self._ahead.branches:
            _take_back_number(branch)


def _follows(branch: Branch, row: DeviceRow) -> bool:
    """Whether a step's row is still the branch's: it has not ended, and the host has not changed it since."""
    return branch.slot is not None and branch.device_row is row


def _take_back_number(branch: Branch) -> None:
    """The next random number is the one that was drawn last, so that a seed gives the same whoever draws."""
    branch.rng.bit_generator.advance(-1)  # type: ignore[attr-defined]  # PCG64, numpy's default, has it


def _children_in(result: Floats) -> _Children:
    scores, parents, token_ids, logprobs = result[1:].reshape(4, -1)
    return _Children(scores, parents.astype(np.int64).tolist(), token_ids.astype(np.int64).tolist(), logprobs)
