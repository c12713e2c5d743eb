"""The native wire: drafts with their scores, work and timings."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.outputs import DraftOutput, GenerationOutput
from superdraft.decoding.params import GenerationParams
from superdraft.server.completions import floored
from superdraft.server.json_body import documented, json_body
from superdraft.server.routes_openai import ERROR_RESPONSES, ServiceDep
from superdraft.server.schemas_native import Draft, DraftsRequest, DraftsResponse, DraftsTimings, DraftsUsage
from superdraft.server.service import unless_client_gone

router = APIRouter(tags=["Superdraft"])


@router.post(
    "/v1/drafts",
    response_model=DraftsResponse,
    responses=ERROR_RESPONSES,
    openapi_extra=documented(DraftsRequest),
    summary="Drafts with scores, work and timings",
)
async def create_drafts(
    request: Request,
    service: ServiceDep,
    body: Annotated[DraftsRequest, Depends(json_body(DraftsRequest))],
) -> DraftsResponse:
    """Complete one prompt with k drafts from one pass of the model."""
    service.check_model(body.model)
    ngrams = service.ngram_models
    scorer = ngrams.default_scorer if body.uses_default_ngram_model else ngrams.choose(body.ngram_model)
    drafts_id = f"drafts-{uuid.uuid4().hex}"
    work = service.engine.generate(drafts_id, body.prompt, generation_params(body, service.alpha, service.tau), scorer)
    output = await unless_client_gone(request, work)
    return drafts_response(drafts_id, service.model_name, output, request_warnings(body, scorer))


def generation_params(body: DraftsRequest, alpha: float, tau: float) -> GenerationParams:
    """What to decode, with `alpha` and `tau` unless the request has its own."""
    return GenerationParams(
        num_drafts=body.num_drafts,
        max_tokens=body.max_tokens,
        alpha=alpha if body.alpha is None else body.alpha,
        tau=tau if body.tau is None else body.tau,
        candidates_per_draft=body.candidates_per_draft,
        stop=body.stop,
    )


def request_warnings(body: DraftsRequest, scorer: NgramScorer[object] | None) -> list[str]:
    """What in the request has no effect."""
    warnings = []
    if body.seed is not None:
        warnings.append("seed has no effect: superposed decoding is deterministic and does not sample.")
    if body.alpha and scorer is None:
        warnings.append("alpha has no effect: the request runs without an n-gram model.")
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
