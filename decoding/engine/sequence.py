"""The engine's state of one request: a sequence and its branches."""

import math
from dataclasses import dataclass, field
from typing import Any

from numpy.random import Generator
from torch import Tensor

from superdraft.decoding.engine.tree import Node, Tree, text_keys
from superdraft.decoding.method.draft_set import DraftSet, Extend
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.covers import Covers
from superdraft.decoding.text.healing import HealingPlan

NUM_SAMPLED_STEPS = 3
"""With the strategy "sample+superposed": the tokens that each branch samples before superposed drafting starts."""


@dataclass(slots=True, eq=False)
class Branch:
    """One row of the model: a path through a token tree, and the drafts that share it.

    Attributes:
        sequence: the request that the branch belongs to.
        drafts: the drafts on this row.
        rng: random numbers for sampling and resets.
        tree: the token tree; None while the request has no slot.
        base: how many of the tree's first tokens the branch follows.
        cells: the cells of the positions behind them.
        stem_ids: with token healing, the typed tokens that the branch follows after the tokens that all covers share.
        num_steps: tokens that each alive draft has.
        num_exact: how many of the drafts' first tokens have keys and values of real tokens, not of superposed inputs.
        num_rows: rows that were run for it, and for the branch that it was forked from.
        is_limited: whether it ended early because of the load (`load`).
    """

    sequence: "Sequence"
    drafts: DraftSet
    rng: Generator
    tree: Tree | None = None
    base: int = 0
    cells: tuple[int, ...] = ()
    stem_ids: tuple[int, ...] = ()
    num_steps: int = 0
    num_exact: int = 0
    num_rows: int = 0
    is_limited: bool = False

    @property
    def num_computed(self) -> int:
        """Positions of its text that have keys and values."""
        return self.base + len(self.cells)

    @property
    def num_context(self) -> int:
        """Tokens before the drafts."""
        return self.sequence.num_shared + len(self.stem_ids)

    @property
    def next_key(self) -> int | None:
        """`text_keys` of the text up to the token that the next row feeds; None: it feeds no text of real tokens."""
        if len(self.drafts.alive) != 1:
            return None
        (draft,) = self.drafts.alive
        if not draft.token_ids or self.num_exact != len(draft.token_ids) - 1:
            return None
        keys, num_shared = self.sequence.prompt_keys, self.sequence.num_shared
        return text_keys((*self.stem_ids, *draft.token_ids), keys[num_shared - 1])[-1]

    @property
    def is_done(self) -> bool:
        """Whether it has all its tokens or as many as the load allows, or no draft of it can grow or is probable."""
        return (
            self.is_limited
            or self.num_steps >= self.sequence.params.max_tokens
            or self.drafts.is_done
            or self.is_unsure
            or self.num_computed >= self.sequence.max_positions
        )

    @property
    def is_sampled(self) -> bool:
        """Whether its next token is sampled, or the most probable one. Such a branch has one draft."""
        strategy = self.sequence.params.strategy
        if strategy == "sample+superposed":
            return self.num_steps < NUM_SAMPLED_STEPS
        return strategy in ("sample", "greedy")

    @property
    def last_token_ids(self) -> list[int]:
        """The token ids that the next decode step feeds, one per draft."""
        return [draft.token_ids[-1] for draft in self.drafts.alive]

    def count_step(self) -> None:
        """Count a step that fed the drafts' last tokens, superposed if there are several drafts, as a row."""
        rows = self.sequence.rows_by_depth
        rows += [0] * (self.num_steps - len(rows))
        rows[self.num_steps - 1] += 1
        self.sequence.forward_rows += 1
        self.sequence.draft_rows += len(self.drafts.alive)
        self.num_rows += 1
        if len(self.drafts.alive) == 1 and self.num_exact == len(self.drafts.alive[0].token_ids) - 1:
            self.num_exact += 1

    def follow(self, node: Node) -> None:
        """Feed the draft's last token, which has been run before, without a row."""
        self.cells = (*self.cells, node.cell)
        self.num_exact += 1

    @property
    def is_unsure(self) -> bool:
        """Whether it ends early because no draft is probable enough (`min_probability`).

        Half a word is not a suggestion, so drafts without a finished first word get up to `min_draft_tokens` more
        tokens.
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
    """A request in the engine: waiting -> prefilling -> running -> answered.

    Attributes:
        request: the request.
        prompt_token_ids: the tokens that the model is fed, at least one.
        scorer: the n-gram model; None if the request does not use one.
        extend: appends a token to a draft.
        max_positions: positions of its longest text.
        arrival_s: the clock when the request was added.
        waiting_since_s: since when drafts have been waited for, perhaps by earlier requests; who has waited longest
            goes first.
        deadline_s: the clock at which the request is answered with the drafts so far; None: no limit.
        num_start_tokens: 1 if the first token is the one that begins a document and was put in front; else 0.
        healing: the healing plan for the prompt's end; None: the drafts follow the prompt's own tokens.
        has_whole_tail: whether all tokens of the healing plan's tail are run, although some may not matter.
        covers: of the prompt's end, if they are known before its drafts begin.
        opening_alternatives: with token healing and verification, the most probable openings, best first, as (token id,
            text, log-probability given the typed text).
        warnings: remarks for the caller, part of the answer.
        branches: the first one exists from the start, the others once the prompt has been run.
        trees: its token trees, one per slot; usually one.
        prompt_keys: `text_keys` of the prompt.
        prompt_logits: the model's output after the last shared token and after each of the tokens behind it that have
            been run, float32, each of shape [V]; empty once the drafts have begun.
        stem_cells: of other tokenisations of the prompt's end, while its openings are chosen.
        num_cached_tokens: prompt tokens that an earlier request had run.
        forward_rows: model rows spent after the prompt's own pass (`Usage.forward_rows`).
        rows_by_depth: rows that fed the drafts' first tokens, their second ones, and so on.
        draft_rows: rows that these steps would have taken with a row per draft.
        start_s: the clock when the request got a slot; None before that.
        prefill_s: duration of the passes over the prompt, in seconds.
        decode_s: duration of the decode steps in which the request took part, in seconds.
        ngram_s: the part of both that the n-gram model took, in seconds.
    """

    request: EngineRequest
    prompt_token_ids: list[int]
    scorer: NgramScorer[Any] | None
    extend: Extend
    max_positions: int
    arrival_s: float = 0.0
    waiting_since_s: float = 0.0
    deadline_s: float | None = field(init=False)
    num_start_tokens: int = 0
    healing: HealingPlan | None = None
    has_whole_tail: bool = True
    covers: Covers | None = None
    opening_alternatives: tuple[tuple[int, str, float], ...] = ()
    warnings: list[str] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)
    prompt_keys: list[int] = field(init=False)
    prompt_logits: list[Tensor] = field(default_factory=list)
    stem_cells: list[tuple[int, ...]] = field(default_factory=list)
    num_cached_tokens: int = 0
    forward_rows: int = 0
    rows_by_depth: list[int] = field(default_factory=list)
    draft_rows: int = 0
    start_s: float | None = None
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ngram_s: float = 0.0

    def __post_init__(self) -> None:
        self.deadline_s = self.request.deadline_s
        self.prompt_keys = text_keys(self.prompt_token_ids)

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.request.request_id

    @property
    def params(self) -> GenerationParams:
        """The generation's parameters."""
        return self.request.params

    @property
    def shared_token_ids(self) -> list[int]:
        """The prompt's tokens that all drafts follow; token healing may replace the tokens behind them."""
        return self.prompt_token_ids[: self.num_shared]

    @property
    def num_shared(self) -> int:
        """How many of the prompt's tokens all drafts follow, at least one."""
        return len(self.prompt_token_ids) if self.healing is None else self.healing.num_shared

    @property
    def num_unfed_tokens(self) -> int:
        """Prompt tokens that have to be run and have no keys and values yet."""
        tree = self.branches[0].tree
        num_wanted = len(self.prompt_token_ids) if self.has_whole_tail else self.num_shared
        return max(0, num_wanted - (0 if tree is None else len(tree.trunk)))

    @property
    def is_done(self) -> bool:
        """Whether every branch is done."""
        return all(branch.is_done for branch in self.branches)
