"""What the engine remembers of one request. No tensors."""

import math
from dataclasses import dataclass, field
from typing import Any

from numpy.random import Generator

from superdraft.decoding.method.draft_set import DraftSet, Extend
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.healing import HealingPlan

NUM_SAMPLED_STEPS = 3
"""Tokens that each branch samples before superposed drafting starts, with the strategy "sample+superposed"."""


@dataclass(slots=True, eq=False)
class Branch:
    """One row of the model: a KV-cache slot and the drafts that share it.

    Attributes:
        sequence: the request it belongs to.
        drafts: its draft set.
        rng: for sampling and resets.
        slot: its KV-cache slot while it runs.
        num_computed: positions of the slot that hold keys and values.
        path: the tokens that its slot holds after those that all covers of the prompt share (token healing).
        num_steps: tokens that each alive draft has.
        num_exact: tokens of the drafts, from the first on, whose keys and values are those of real tokens.
    """

    sequence: "Sequence"
    drafts: DraftSet
    rng: Generator
    slot: int | None = None
    num_computed: int = 0
    path: tuple[int, ...] = ()
    num_steps: int = 0
    num_exact: int = 0

    @property
    def context_token_ids(self) -> list[int]:
        """The tokens before the drafts."""
        return [*self.sequence.shared_token_ids, *self.path]

    @property
    def is_done(self) -> bool:
        """All its tokens are chosen, no draft is left to grow, none is probable any more, or its slot is full."""
        return (
            self.num_steps >= self.sequence.params.max_tokens
            or self.drafts.is_done
            or self.is_unsure
            or self.num_computed >= self.sequence.max_positions
        )

    @property
    def is_joining(self) -> bool:
        """Its prompt's last token has not been fed: that goes into a decode step, and gives first tokens."""
        return self.num_steps == 0

    @property
    def is_sampled(self) -> bool:
        """Its next token is sampled, or the most probable one, and so it has one draft."""
        strategy = self.sequence.params.strategy
        if strategy == "sample+superposed":
            return self.num_steps < NUM_SAMPLED_STEPS
        return strategy in ("sample", "greedy")

    @property
    def last_token_ids(self) -> list[int]:
        """What the next decode step feeds, an entry a draft."""
        if self.is_joining:
            return self.sequence.prompt_token_ids[-1:]
        return [draft.token_ids[-1] for draft in self.drafts.alive]

    def count_step(self) -> None:
        """Its drafts' last tokens were fed, superposed if there are several."""
        if self.is_joining:
            self.num_computed += 1  # the prompt's
            return
        if len(self.drafts.alive) == 1 and self.num_exact == len(self.drafts.alive[0].token_ids) - 1:
            self.num_exact += 1
        self.num_computed += 1
        self.sequence.forward_rows += 1

    @property
    def is_unsure(self) -> bool:
        """It ends before its time: none of its drafts is probable enough.

        A draft that has not finished its first word may have as many tokens again to do so: half a word is none.
        """
        params = self.sequence.params
        low = params.min_probability
        is_spared = params.whole_best and self is self.sequence.branches[0]
        if low == 0 or is_spared or self.num_steps < params.min_draft_tokens or not self.drafts.alive:
            return False
        if max(draft.lm_logprob for draft in self.drafts.alive) >= math.log(low):
            return False
        return self.num_steps >= 2 * params.min_draft_tokens or any(draft.has_word for draft in self.drafts.alive)


@dataclass(slots=True, eq=False)
class Sequence:
    """One request on its way: waiting -> prefilling (one slot) -> running (a slot for each branch) -> answered.

    Attributes:
        request: what was asked for.
        prompt_token_ids: what the model is fed, never empty.
        num_start_tokens: the first of them that are no part of the prompt: the token that begins a document.
        scorer: the n-gram model; None when it has no say.
        extend: adds a token to one of its drafts.
        arrival_s: the clock when it was added.
        max_positions: positions that its slots have.
        deadline_s: the clock at which it is answered with what it has.
        healing: where the covers of the prompt's end part; None: the prompt's own tokens are the only ones.
        start_alternatives: for verification, the most probable first tokens of drafts of a prompt that is healed: id,
            text, log-probability given the typed text.
        warnings: what the answer should tell the caller.
        branches: its rows; the first one exists from the start, the others after the prompt's pass.
        num_cached_tokens: prompt tokens that came from the prefix cache.
        forward_rows: model rows of its decode steps and of its verification pass.
        start_s: the clock when it got a slot.
        prefill_s: how long its prompt's passes took.
        decode_s: how long its decode steps took, waiting for nobody.
        ngram_s: the part of both that the n-gram model took.
    """

    request: EngineRequest
    prompt_token_ids: list[int]
    scorer: NgramScorer[Any] | None
    extend: Extend
    max_positions: int
    arrival_s: float = 0.0
    deadline_s: float | None = None
    num_start_tokens: int = 0
    healing: HealingPlan | None = None
    start_alternatives: tuple[tuple[int, str, float], ...] = ()
    warnings: list[str] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    num_cached_tokens: int = 0
    forward_rows: int = 0
    start_s: float | None = None
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ngram_s: float = 0.0

    @property
    def request_id(self) -> str:
        """The caller's name for the request."""
        return self.request.request_id

    @property
    def params(self) -> GenerationParams:
        """What was asked for."""
        return self.request.params

    @property
    def shared_token_ids(self) -> list[int]:
        """The prompt's tokens that all drafts go on from."""
        return self.prompt_token_ids[: self.num_shared]

    @property
    def num_shared(self) -> int:
        """The number of these, at least one."""
        return len(self.prompt_token_ids) if self.healing is None else self.healing.num_shared

    @property
    def num_reusable(self) -> int:
        """Prompt tokens that need not be run if they are known: the logits after the others are needed."""
        return self.num_shared - 1

    @property
    def num_unfed_tokens(self) -> int:
        """Prompt tokens without keys and values yet."""
        return len(self.prompt_token_ids) - self.branches[0].num_computed

    @property
    def is_done(self) -> bool:
        """Every branch is done."""
        return all(branch.is_done for branch in self.branches)
