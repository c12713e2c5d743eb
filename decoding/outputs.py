"""What the engine answers. Plain values: no tensors, nothing of HTTP."""

from dataclasses import dataclass
from typing import Literal

from superdraft.decoding.errors import SuperdraftError

FinishReason = Literal["stop", "length", "improbable"]
"""Why a draft ended: end of text or a stop string; its tokens ran out; going on was improbable (`min_probability`)."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's exact log-probability under the language model, by a verification pass.

    Attributes:
        token_id: the token.
        text: its text as it stands in the draft; bytes that are no whole character show as U+FFFD.
        logprob: natural log; None for the first token of a prompt, which nothing precedes.
        top: the most probable alternatives, best first, as (token id, text, log-probability).
    """

    token_id: int
    text: str
    logprob: float | None
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class DraftOutput:
    """One finished draft.

    Attributes:
        index: rank, 0 is the best.
        text: what goes on right after the prompt's last character.
        token_ids: the draft's tokens, without the end-of-text token. With a stop string these are the tokens that
            were decoded, so their text may be longer than `text`.
        tokens: the text of each token.
        score: what the drafts are ranked by. With the selection "distinct", ln of the probability that the text goes
            on with the draft's first word; else the mean over the tokens of ln p_f, the interpolated score (eq. 6),
            the end-of-text token included.
        token_logprobs: for each token, its log-probability in the step that chose it. The first is exact, given the
            typed text; the later ones are exact where the draft had a row of its own, and approximations where its row
            was superposed.
        finish_reason: see `FinishReason`.
        exact_logprobs: from the verification pass, if one was asked for.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    score: float
    token_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    exact_logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Work done for one request.

    Attributes:
        prompt_tokens: tokens of the prompt; a token that the engine put in front of it is not counted.
        completion_tokens: tokens of all drafts together.
        cached_tokens: prompt tokens whose keys and values came from an earlier request.
        forward_rows: model rows of all decode steps: one per step for superposed decoding, whatever k is. The
            prompt's own pass is not counted; another tokenisation of its end that had to be run is. A verification
            pass counts one row for each token that it checks.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    forward_rows: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock milliseconds of one request. `ngram_ms` is part of `prefill_ms` and `decode_ms`."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    ngram_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class GenerationOutput:
    """The answer to one request: its drafts, best first."""

    request_id: str
    drafts: tuple[DraftOutput, ...]
    usage: Usage
    timings: Timings
    prompt_token_ids: tuple[int, ...]
    warnings: tuple[str, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class DraftSnapshot:
    """One draft while it grows.

    Attributes:
        text: as it stands now; a later step may replace it.
        score: as that of a finished draft, so far.
    """

    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The drafts of one request after a step, best first.

    Attributes:
        num_steps: tokens chosen so far.
        drafts: the best k.
        stable_text: what every one of them begins with and no later step can change.
    """

    num_steps: int
    drafts: tuple[DraftSnapshot, ...]
    stable_text: str


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one engine step has to say of one request. Exactly one of the three is set.

    Attributes:
        request_id: whose it is.
        snapshot: not terminal; only for requests that asked for snapshots.
        output: terminal, the answer.
        error: terminal, why there is none.
    """

    request_id: str
    snapshot: Snapshot | None = None
    output: GenerationOutput | None = None
    error: SuperdraftError | None = None

    @property
    def is_terminal(self) -> bool:
        """Nothing more comes for this request."""
        return self.snapshot is None
