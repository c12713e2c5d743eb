"""Results of the engine, as plain values: no tensors and nothing specific to HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from superdraft.decoding.errors import SuperdraftError

FinishReason = Literal["stop", "length", "improbable"]
"""Why a draft ended: end of text or stop string; token limit reached; continuation too unlikely (`min_probability`)."""

OUT_OF_TIME = "The time limit was reached before the drafts were complete: they are cut short."
"""The warning of an answer whose request reached its time limit."""


class Extent(NamedTuple):
    """A beginning of a draft that ends where a word ends, or where the draft ends.

    Attributes:
        num_characters: its length in code points.
        probability: the language model's, that the text continues with it, given the typed text. As exact as the
            draft's `token_logprobs`.
    """

    num_characters: int
    probability: float


def extents_within(extents: Sequence[Extent], num_characters: int) -> tuple[Extent, ...]:
    """The extents of a draft that is cut to a length. A word that the cut parts keeps its probability, as a bound."""
    within = [extent for extent in extents if extent.num_characters < num_characters]
    rest = extents[len(within) :]
    return (*within, Extent(num_characters, rest[0].probability)) if rest and num_characters else tuple(within)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's exact log-probability under the language model, from a verification pass.

    Attributes:
        token_id: the token.
        text: its text in the draft; bytes that do not form a whole character appear as U+FFFD.
        logprob: natural log; None for the first token of a prompt, which has no context.
        top: the most probable alternatives, best first, as (token id, text, log-probability).
    """

    token_id: int
    text: str
    logprob: float | None
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Replaced:
    """The end of a prompt that a draft takes the place of, as it was mistyped."""

    text: str

    @property
    def characters(self) -> int:
        """Its length in code points."""
        return len(self.text)

    @classmethod
    def of(cls, data: bytes) -> "Replaced | None":
        """What these bytes of the prompt are, if there are any."""
        return cls(data.decode()) if data else None


def kept(prompt: str, replaces: Replaced | None) -> str:
    """The part of a prompt that stays before a draft."""
    return prompt if replaces is None else prompt.removesuffix(replaces.text)


@dataclass(frozen=True, slots=True)
class DraftOutput:
    """One finished draft.

    Attributes:
        index: rank, 0 is the best.
        text: the continuation, starting right after the prompt's last character, or in the place of `replaces`.
        token_ids: the draft's tokens, without the end-of-text token. With a stop string these are all decoded tokens,
            so their text may be longer than `text`.
        tokens: the text of each token; of a correction, the first has the whole corrected word.
        score: the value that drafts are ranked by. With the selection "distinct", ln of the probability that the text
            continues with the draft's first word; otherwise the mean over the tokens, including the end-of-text token,
            of ln p_f, the interpolated score (eq. 6).
        token_logprobs: each token's log-probability in the step that chose it. The first is exact, given the typed
            text. Later ones are exact where the draft had its own row, and approximate where its row was superposed.
        finish_reason: see `FinishReason`.
        exact_logprobs: from the verification pass, if one was requested.
        replaces: the end of the prompt that the text takes the place of; None: the text is only added.
        extents: how probable the text is up to each of its words, shortest first, as `SelectionRule.extents` has them.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    score: float
    token_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    exact_logprobs: tuple[TokenLogprob, ...] | None = None
    replaces: Replaced | None = None
    extents: tuple[Extent, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Work done for one request.

    Attributes:
        prompt_tokens: tokens of the prompt, without a token that the engine put in front of it.
        completion_tokens: tokens of all drafts together.
        cached_tokens: prompt tokens whose keys and values came from an earlier request.
        forward_rows: model rows of all decode steps; superposed decoding uses one per step for any k. The prompt's own
            pass is not counted, but an alternative tokenisation of its end that had to be run is. A verification pass
            counts one row per token checked.
        rows_by_depth: rows that fed the drafts' first tokens, their second ones, and so on.
        draft_rows: rows that the same steps would have taken with a row per draft.
        reused_drafts: drafts that took no row, since an earlier request had decoded them.
        limited_by_load: whether drafts ended early because the engine had much to do.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    forward_rows: int
    rows_by_depth: tuple[int, ...] = ()
    draft_rows: int = 0
    reused_drafts: int = 0
    limited_by_load: bool = False


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock times of one request in milliseconds. `ngram_ms` is part of `prefill_ms` and `decode_ms`."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    ngram_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class GenerationOutput:
    """The result of one request: its drafts, best first."""

    request_id: str
    drafts: tuple[DraftOutput, ...]
    usage: Usage
    timings: Timings
    prompt_token_ids: tuple[int, ...]
    warnings: tuple[str, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class DraftSnapshot:
    """One unfinished draft.

    Attributes:
        text: its current text, which a later step may replace.
        score: its current score, see `DraftOutput.score`.
        replaces: see `DraftOutput`.
        extents: see `DraftOutput`; its last word may be unfinished.
    """

    text: str
    score: float
    replaces: Replaced | None = None
    extents: tuple[Extent, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The drafts of one request after a step, best first.

    Attributes:
        num_steps: number of tokens chosen so far.
        drafts: the best k.
        stable_text: the beginning of the answer's first draft, as far as no later step can change it.
        rows_by_depth: as in `Usage`, so far.
    """

    num_steps: int
    drafts: tuple[DraftSnapshot, ...]
    stable_text: str
    rows_by_depth: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The outcome of one engine step for one request. Exactly one of `snapshot`, `output` and `error` is set.

    Attributes:
        request_id: the request.
        snapshot: not terminal; only for requests that asked for snapshots.
        output: terminal: the result.
        error: terminal: why there is no result.
    """

    request_id: str
    snapshot: Snapshot | None = None
    output: GenerationOutput | None = None
    error: SuperdraftError | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether this is the last output for the request."""
        return self.snapshot is None


@dataclass(frozen=True, slots=True)
class StepReport:
    """Figures of one engine step, for metrics and benchmarks.

    Attributes:
        kind: "prefill" if prompts took part, else "decode"; "warm_up" if all that it ran was for later requests; None:
            it only gave out answers.
        num_rows: rows of drafts.
        num_prompt_tokens: tokens of prompts.
        num_completed: prompts that were complete after it, and were not before.
        seconds: duration of the whole step.
        first_draft_s: for each request whose drafts got their first token in this step, the seconds since it was added.
        num_expired: requests that reached their time limit in this step.
        num_waiting: requests whose prompts wait for a later step.
    """

    kind: Literal["prefill", "decode", "warm_up"] | None
    num_rows: int
    num_prompt_tokens: int
    num_completed: int
    seconds: float
    first_draft_s: tuple[float, ...]
    num_expired: int
    num_waiting: int = 0
