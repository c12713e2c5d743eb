"""What the engine remembers of one request. No tensors."""

from dataclasses import dataclass, field
from typing import Any

from superdraft.decoding.draft_set import DraftSet, Extend
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.params import GenerationParams


@dataclass(slots=True, eq=False)
class Sequence:
    """One request on its way: WAITING (no slot) -> running (a slot) -> gone.

    Attributes:
        request_id: the caller's name for it.
        prompt_token_ids: what the model is fed, never empty.
        params: what was asked for.
        scorer: the n-gram model; None when it has no say.
        extend: adds a token to one of its drafts.
        arrival_s: the clock when it was added.
        slot: its KV-cache slot while it runs.
        num_computed: positions of the slot that hold keys and values: prompt, then one for each decode step.
        drafts: its draft set.
        num_steps: tokens that each alive draft has.
        forward_rows: model rows of its decode steps and of its verification pass.
        start_s: the clock when it got a slot.
        prefill_s: how long its prompt's pass took.
        decode_s: how long its decode steps took, waiting for nobody.
        ngram_s: the part of both that the n-gram model took.
        warnings: what the answer should tell the caller.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: GenerationParams
    scorer: NgramScorer[Any] | None
    extend: Extend
    arrival_s: float
    warnings: list[str] = field(default_factory=list)
    slot: int | None = None
    num_computed: int = 0
    drafts: DraftSet = field(default_factory=DraftSet)
    num_steps: int = 0
    forward_rows: int = 0
    start_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ngram_s: float = 0.0

    @property
    def is_done(self) -> bool:
        """All its tokens are chosen, or no draft is left to grow."""
        return self.num_steps >= self.params.max_tokens or self.drafts.is_done
