"""The native wire's request as engine parameters, and the engine's outputs as its answers."""

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.outputs import DraftOutput, GenerationOutput, Snapshot
from superdraft.decoding.params import GenerationParams
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.wires.common import PromptTokensDetails, bias_pairs
from superdraft.server.wires.native.schemas import (
    Draft,
    DraftsRequest,
    DraftsResponse,
    DraftsSnapshot,
    DraftsTimings,
    DraftsUsage,
    SnapshotDraft,
)
from superdraft.server.wires.openai.mapping import floored
from superdraft.server.wires.request_warnings import strategy_warnings

MAX_SESSION_ID = 128


def generation_params(body: DraftsRequest, drafting: DraftingDefaults, *, token_healing: bool) -> GenerationParams:
    """What to decode; the other arguments are for a request that doesn't say.

    Raises:
        InvalidRequestError: two fields contradict each other.
    """
    healing = token_healing if body.token_healing is None else body.token_healing
    return GenerationParams(
        num_drafts=body.num_drafts,
        max_tokens=body.max_tokens,
        **drafting.fill(
            strategy=body.strategy,
            num_drafts=body.num_drafts,
            max_tokens=body.max_tokens,
            selection=body.selection,
            max_branches=body.max_branches,
            min_probability=body.min_probability,
            min_draft_tokens=body.min_draft_tokens,
            alpha=body.alpha,
            tau=body.tau,
            candidates_per_draft=body.candidates_per_draft,
            reset_every=body.reset_every,
            ngram_model=body.ngram_model,
        ),
        stop=body.stop,
        strategy=body.strategy,
        num_branches=body.num_branches,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        reset_every=body.reset_every,
        logit_bias=bias_pairs(body.logit_bias),
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        token_healing=healing and isinstance(body.prompt, str),
        single_line=body.single_line,
        trim=body.trim,
        min_score=body.min_score,
        snapshots=body.stream,
    )


def session_of(body: DraftsRequest, header: str | None) -> str | None:
    """The request's session, from the body or else from the `x-session-id` header.

    Raises:
        InvalidRequestError: the header is empty or too long.
    """
    if body.session_id is not None or header is None:
        return body.session_id
    if not 1 <= len(header) <= MAX_SESSION_ID:
        message = f"x-session-id must have 1 to {MAX_SESSION_ID} characters, got {len(header)}."
        raise InvalidRequestError(message, param="session_id")
    return header


def timeout_of(body: DraftsRequest, max_timeout_ms: int) -> float | None:
    """The request's own time limit, in seconds.

    Raises:
        InvalidRequestError: it is over the server's limit.
    """
    if body.timeout_ms is None:
        return None
    if body.timeout_ms > max_timeout_ms:
        message = f"timeout_ms must be at most {max_timeout_ms} on this server, got {body.timeout_ms}."
        raise InvalidRequestError(message, param="timeout_ms")
    return body.timeout_ms / 1000


def request_warnings(body: DraftsRequest, scorer: NgramScorer[object] | None) -> list[str]:
    """What in the request has no effect."""
    warnings = strategy_warnings(body)
    if body.alpha and scorer is None and body.strategy.endswith("superposed"):
        warnings.append("alpha has no effect: the request runs without an n-gram model.")
    if body.ngram_model is not None and body.strategy.endswith("superposed"):
        if body.alpha == 0:
            warnings.append("ngram_model has no effect with alpha 0.")
        elif body.alpha is None and body.selection == "distinct":
            warnings.append("ngram_model has no effect with selection distinct unless alpha is given.")
    if body.token_healing and not isinstance(body.prompt, str):
        warnings.append("token_healing has no effect: the prompt is given as token ids.")
    return warnings


def drafts_response(drafts_id: str, model_name: str, output: GenerationOutput, warnings: list[str]) -> DraftsResponse:
    """The engine's output in the native shape; `warnings` come before the engine's own."""
    usage, timings = output.usage, output.timings
    return DraftsResponse(
        id=drafts_id,
        model=model_name,
        drafts=[_draft(draft) for draft in output.drafts],
        usage=DraftsUsage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
            cached_tokens=usage.cached_tokens,
            forward_rows=usage.forward_rows,
        ),
        timings=DraftsTimings(
            queue_ms=round(timings.queue_ms, 3),
            prefill_ms=round(timings.prefill_ms, 3),
            decode_ms=round(timings.decode_ms, 3),
            ngram_ms=round(timings.ngram_ms, 3),
            total_ms=round(timings.total_ms, 3),
        ),
        warnings=[*warnings, *output.warnings],
    )


def drafts_snapshot(drafts_id: str, snapshot: Snapshot) -> DraftsSnapshot:
    """The drafts after a step, as an event of the stream."""
    return DraftsSnapshot(
        id=drafts_id,
        step=snapshot.num_steps,
        stable_text=snapshot.stable_text,
        drafts=[
            SnapshotDraft(index=index, text=draft.text, score=floored(draft.score))
            for index, draft in enumerate(snapshot.drafts)
        ],
    )


def _draft(draft: DraftOutput) -> Draft:
    return Draft(
        index=draft.index,
        text=draft.text,
        tokens=list(draft.tokens),
        token_ids=list(draft.token_ids),
        score=floored(draft.score),
        token_logprobs=[floored(logprob) for logprob in draft.token_logprobs],
        finish_reason=draft.finish_reason,
    )
