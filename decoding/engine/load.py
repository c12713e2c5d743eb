"""The engine's load: the cost of its steps, and less work for each request when there is much to do.

What a step costs is learned here, for the engine and for whoever lets requests in.

*Elastic work*: under load, drafts end sooner, then fewer of them grow, before anyone waits long.

The first token of every draft costs no row, because the prompt's own pass gives it. What follows costs rows. A *plan*
says how much of it an elastic request may have now:

====  =======================================  =====================================
plan  a draft grows                            drafts that grow
====  =======================================  =====================================
0     to its own end                           all that are probable enough
1     until its first word is finished         all
2     until its first word is finished         the two most probable
3     until its first word is finished         the most probable
====  =======================================  =====================================

The plan is the first with which the requests in the engine would be answered in time, at the measured cost of a step:
within the target latency, and before their typists' next keys. How long whole drafts take is only a guess. So a request
gets no more than first words once its typist's next key is near, or once it has held its slot for long while others
wait for one.

A plan says nothing about which tokens are chosen: with the same rows and tokens, the drafts are the same, whatever a
request's neighbours are.
"""

import math
import statistics
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from superdraft.decoding.outputs import StepReport

if TYPE_CHECKING:  # the sequence imports torch, which those who only ask for costs need not
    from superdraft.decoding.engine.sequence import Branch, Sequence

WHOLE_SHARE, WORDS_SHARE = 0.25, 0.5
"""The part of the target latency that whole drafts may take, and that of drafts which end at their first words: it is
better to wait a little longer for a word than to get fewer. The rest is for the prompt and the wait."""

WHOLE_GAP_SHARE, WORDS_GAP_SHARE = 0.25, 0.4
"""The same parts of the usual time until a typist's next key."""

_ROWS = (None, None, 2, 1)
_WORD_TOKENS = 3.0  # tokens of a first word, and the one that shows that it has ended
_DECAY = 0.98  # weight of a step relative to the one after it
_PRIOR = np.array([0.004, 0.0005, 0.0005, 0.001])
"""Seconds per step, row, prompt token and request that begins: a small model on two cores."""

_PRIOR_WEIGHT = np.array([10.0, 2e2, 2e3, 1e2])
_SMALLEST_TERM = 1e-6  # seconds; no step counts as shorter, whatever a coarse clock says
_LARGEST_SURPRISE = 3.0  # a step that takes longer than this many times what was expected lost its core for a while
_SMOOTHING = 1 / 16
_USUAL_TOKENS = 8.0  # tokens of a draft that nothing limits, as long as none has been seen
_USUAL_PROMPT_STEP = 16.0, 1.0  # tokens of a step with prompts and requests that begin in it, before the first one
_USUAL_STEPS_PER_PROMPT = 0.5  # several short prompts share a step
_PROMPT_DECAY = 1 / 32
_LONGEST_CHUNK_S = 0.1
_LONGEST_SHARED_CHUNK_S = 0.2
_FEWEST_CHUNK_TOKENS = 32


class StepCost:
    """What a step costs: seconds = pace * (base + a per row + b per prompt token + c per request that begins drafts).

    The terms are fitted to the latest steps. Few rows say little about many, so what the latest steps say nothing about
    keeps its value. The pace follows the machine's speed, which changes all terms alike and at once: whoever asks about
    many rows after steps of few is not told what they cost when the machine was busy.
    """

    def __init__(self) -> None:
        self._weights = np.diag(_PRIOR_WEIGHT)
        self._targets = self._weights @ _PRIOR
        self._terms: list[float] = _PRIOR.tolist()
        self._pace = 1.0

    def observe(self, num_rows: int, num_prompt_tokens: int, num_begun: int, seconds: float) -> None:
        """Note a step."""
        expected = self.seconds(num_rows, num_prompt_tokens, num_begun)
        seconds = min(max(seconds, _SMALLEST_TERM), _LARGEST_SURPRISE * expected)
        features = np.array([1.0, num_rows, num_prompt_tokens, num_begun])
        # The prior stays in part, so that terms of which the latest steps say nothing keep a value.
        prior = np.diag(_PRIOR_WEIGHT)
        self._weights = _DECAY * self._weights + (1 - _DECAY) * prior + np.outer(features, features)
        self._targets = _DECAY * self._targets + (1 - _DECAY) * prior @ self._terms + features * seconds / self._pace
        self._terms = np.maximum(np.linalg.solve(self._weights, self._targets), _SMALLEST_TERM).tolist()
        self._pace *= 1 + _SMOOTHING * (seconds / expected - 1)

    def seconds(self, num_rows: float, num_prompt_tokens: float, num_begun: float = 0.0) -> float:
        """The expected duration of a step."""
        base, per_row, per_token, per_begun = self._terms
        return self._pace * (base + per_row * num_rows + per_token * num_prompt_tokens + per_begun * num_begun)

    @property
    def per_row_s(self) -> float:
        """Seconds per row."""
        return self._pace * self._terms[1]

    @property
    def per_prompt_token_s(self) -> float:
        """Seconds per prompt token."""
        return self._pace * self._terms[2]


class Load:
    """What the engine has to do: what its steps cost, and how much work requests may have now.

    The engine's thread observes; any thread may ask what steps cost.

    Args:
        target_s: seconds in which requests should be answered; infinity: nothing is ever limited.

    Attributes:
        num_steps: steps so far that ran rows or prompts for somebody.
        num_waiting: requests whose prompts wait for a step.
        most_running: the most typists' requests that may run at once: if more ran, none would be answered in time.
    """

    def __init__(self, target_s: float = math.inf) -> None:
        self._target_s = target_s
        self._cost = StepCost()
        self._prompt_tokens = self._num_begun = 0.0  # per step, smoothed
        self._own_tokens, self._own_begun = _USUAL_PROMPT_STEP  # per step that has prompts, smoothed
        self._recent_steps, self._recent_prompts = _USUAL_STEPS_PER_PROMPT, 1.0
        self._num_tokens = _USUAL_TOKENS  # of the longest draft of a request that nothing limited, smoothed
        self._overhead_s = 0.0  # of a round, besides its step; smoothed
        self.num_steps = self.num_waiting = 0
        self.most_running = math.inf

    def observe(self, step: StepReport, round_s: float) -> None:
        """Note a step.

        Args:
            step: the engine's report.
            round_s: seconds of all that was done since the step before it, if the engine was busy: taking requests and
                handing over answers belongs to the price of an answer.
        """
        self.num_waiting = step.num_waiting
        if step.kind not in ("prefill", "decode"):
            return
        num_begun, num_tokens = len(step.first_draft_s), step.num_prompt_tokens
        if step.num_rows or num_tokens:  # else all had been run before
            self._cost.observe(step.num_rows, num_tokens, num_begun, step.seconds)
            self._overhead_s += _SMOOTHING * (max(0.0, round_s - step.seconds) - self._overhead_s)
        self._num_begun += _SMOOTHING * (num_begun - self._num_begun)
        self._prompt_tokens += _SMOOTHING * (num_tokens - self._prompt_tokens)
        if step.kind == "prefill":
            self._own_begun += _SMOOTHING * (num_begun - self._own_begun)
            self._own_tokens += _SMOOTHING * (num_tokens - self._own_tokens)
            self._count_prompts(step)
        self.num_steps += 1

    def _count_prompts(self, step: StepReport) -> None:
        """Learn how many prompts a step takes.

        A step that took all who waited would have taken more: it only shows that a prompt needs no more than this.
        """
        is_full = step.num_waiting > 0 or not step.num_completed
        if is_full or step.num_completed * self.steps_per_prompt > 1:
            kept = (1 - _PROMPT_DECAY) ** step.num_completed
            self._recent_steps = self._recent_steps * kept + 1
            self._recent_prompts = self._recent_prompts * kept + step.num_completed

    @property
    def steps_per_prompt(self) -> float:
        """Steps that a waiting prompt needs, at most; below 1 if steps take several of those that wait."""
        return self._recent_steps / self._recent_prompts

    def seconds(self, num_rows: float, num_prompt_tokens: float = 0.0, num_begun: float = 0.0) -> float:
        """The expected duration of a step."""
        return self._cost.seconds(num_rows, num_prompt_tokens, num_begun)

    def usual_s(self, num_rows: float) -> float:
        """The expected duration of a step with as many prompts as steps have now, on average."""
        return self._cost.seconds(num_rows, self._prompt_tokens, self._num_begun)

    def usual_round_s(self, num_rows: float) -> float:
        """The expected duration of a round, with so many rows of requests in the engine, which do not all run."""
        return self.usual_s(min(num_rows, self.most_running)) + self._overhead_s

    def prompt_round_s(self, num_rows: float) -> float:
        """The same of a round that runs prompts."""
        num_rows = min(num_rows, self.most_running)
        return self._cost.seconds(num_rows, self._own_tokens, self._own_begun) + self._overhead_s

    def observe_answer(self, sequence: "Sequence") -> None:
        """Note a request that has been answered."""
        if sequence.params.elastic and not any(branch.is_limited for branch in sequence.branches):
            num_tokens = 1 + len(sequence.rows_by_depth)
            self._num_tokens += _SMOOTHING * (num_tokens - self._num_tokens)

    def chunk_tokens(self, most: int) -> int:
        """Prompt tokens per step: as many as take a tenth of a second, so that time limits are checked often enough.

        Twice as long while several prompts wait: on a machine that is busy with refusals, a tenth of a second is enough
        for one prompt only, and one pass over the weights for each prompt makes the machine busier still.

        Powers of two, since a prompt's logits depend a little on how it is cut.
        """
        longest_s = _LONGEST_SHARED_CHUNK_S if self.num_waiting > 1 else _LONGEST_CHUNK_S
        affordable = longest_s / self._cost.per_prompt_token_s
        return min(most, max(_FEWEST_CHUNK_TOKENS, 1 << int(math.log2(max(1.0, affordable)))))

    def plan(self, sequences: "Collection[Sequence]") -> int:
        """The plan for the next step, with these requests in the engine."""
        params, gap_s = [sequence.params for sequence in sequences], _usual_gap_s(sequences)
        whole_s = min(WHOLE_SHARE * self._target_s, WHOLE_GAP_SHARE * gap_s)
        words_s = min(WORDS_SHARE * self._target_s, WORDS_GAP_SHARE * gap_s)
        # A request that is alone delays no other.
        if len(params) < 2 or not any(one.elastic for one in params) or math.isinf(self._target_s):
            return 0
        for plan, most_rows in enumerate(_ROWS):
            num_rows = sum(
                min(one.num_rows, most_rows or one.num_rows) if one.elastic else one.num_rows for one in params
            )
            longest = max(one.max_tokens for one in params if one.elastic)
            num_tokens = min(longest, _WORD_TOKENS if plan else self._num_tokens)
            step_s = self.usual_s(num_rows)
            if num_tokens * step_s <= (words_s if plan else whole_s):
                return plan
        return len(_ROWS) - 1

    def must_give_way(self, running: "Sequence", without_slot: "Collection[Sequence]", now_s: float) -> bool:
        """Whether a request has held its slot for long, while another one has waited for long for a slot."""
        long_s = WHOLE_SHARE * self._target_s
        is_old = running.start_s is not None and now_s - running.start_s > long_s
        return is_old and any(now_s - one.arrival_s > long_s for one in without_slot)

    def limit_running(self, sequences: "Collection[Sequence]") -> float:
        """Set `most_running` for the next step, with these requests in the engine; at least one."""
        step_s = WORDS_GAP_SHARE * _usual_gap_s(sequences) / _WORD_TOKENS
        rest_s = step_s - self.usual_s(0)
        self.most_running = max(1.0, rest_s / self._cost.per_row_s)
        return self.most_running


def _usual_gap_s(sequences: "Collection[Sequence]") -> float:
    gaps = [gap_s for sequence in sequences if (gap_s := sequence.request.key_gap_s) is not None]
    return statistics.median(gaps) if gaps else math.inf


def is_late(sequence: "Sequence", now_s: float) -> bool:
    """Whether the typist's next key is near."""
    gap_s = sequence.request.key_gap_s
    return gap_s is not None and now_s - sequence.arrival_s > WHOLE_GAP_SHARE * gap_s


def limit(sequence: "Sequence", plan: int) -> None:
    """End the branches of a running request that the plan does not let grow any further."""
    if not plan or not sequence.params.elastic:
        return
    most_rows = _ROWS[plan]
    for index, branch in enumerate(sequence.branches):
        if not branch.is_done and (_has_enough(branch) or (most_rows is not None and index >= most_rows)):
            branch.is_limited = True


def _has_enough(branch: "Branch") -> bool:
    is_word = any(draft.has_word for draft in branch.drafts.alive)
    return is_word or branch.num_steps >= branch.sequence.params.min_draft_tokens
