"""Mapping of the native wire's requests to the engine's, and of the engine's outputs to its answers."""

import time
from dataclasses import asdict
from pathlib import PurePosixPath

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.outputs import GenerationOutput, Replaced, Snapshot
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.text.fim import Gap
from superdraft.decoding.text.gap_cut import has_text_after
from superdraft.server.display import Display, display_warnings
from superdraft.server.drafting import Asked, DraftingDefaults
from superdraft.server.wires.common import PromptTokensDetails
from superdraft.server.wires.native.schemas import (
    Draft,
    DraftsRequest,
    DraftsResponse,
    DraftsSnapshot,
    DraftsTimings,
    DraftsUsage,
    Replaces,
    SnapshotDraft,
)

MAX_SESSION_ID = 128
PROSE_ENDINGS = frozenset(
    (".adoc", ".eml", ".gitcommit", ".mail", ".markdown", ".md", ".org", ".plaintext", ".rst", ".tex", ".text", ".txt")
)
INSIDE_A_LINE = (
    "Nothing is suggested inside a line: the model has no tokens for filling gaps, so it cannot see the text after the "
    "cursor. Send trigger invoked to get drafts all the same."
)


def asked(body: DraftsRequest, gap: Gap, *, is_code_model: bool = False) -> Asked:
    """The engine parameters that a request sets. Inside a line, drafts end with the line.

    Args:
        body: the request.
        gap: the place of the cursor.
        is_code_model: the model is made for code, in which no word is corrected.
    """
    is_prose = isinstance(body.prompt, str) and not is_code_model and _is_for_prose(body.path)
    single_line = body.single_line or has_text_after(gap)
    return body.asked(
        is_text=isinstance(body.prompt, str),
        snapshots=body.stream,
        single_line=single_line,
        corrections=body.corrections == "on" and is_prose and not has_text_after(gap),
    )


def _is_for_prose(path: str) -> bool:
    """Whether a file's name, if there is one, is that of a text that people write for people."""
    return not path or PurePosixPath(path).suffix.lower() in PROSE_ENDINGS


def gap_of(body: DraftsRequest) -> Gap:
    """The place of the cursor.

    Raises:
        InvalidRequestError: there is a `suffix` or a `path`, and the prompt is token ids.
    """
    if isinstance(body.prompt, str):
        return Gap(body.prompt, body.suffix, path=body.path)
    if body.suffix or body.path:
        name = "suffix" if body.suffix else "path"
        raise InvalidRequestError(f"prompt must be text where there is a {name}, got token ids.", param="prompt")
    return Gap("")


def display_of(body: DraftsRequest, gap: Gap, server_minimum: float) -> Display:
    """How the drafts are shown.

    Args:
        body: the request.
        gap: the place of the cursor.
        server_minimum: the server's `min_probability_shown`.
    """
    minimum = body.min_probability_shown
    if minimum is None:
        minimum = server_minimum if body.trigger == "automatic" else 0.0
    return Display(gap, minimum, is_tidy=body.trigger is not None)


def is_silent(body: DraftsRequest, gap: Gap, *, sees_suffix: bool) -> bool:
    """Whether nothing can be suggested here without being asked: inside a line whose rest the model does not see."""
    return body.trigger == "automatic" and has_text_after(gap) and not sees_suffix


def generation_params(body: DraftsRequest, drafting: DraftingDefaults, *, token_healing: bool) -> GenerationParams:
    """The engine parameters of a request that no server answers: with the default strategy unless it names one.

    Args:
        body: the request.
        drafting: the defaults.
        token_healing: the default of this field.

    Raises:
        InvalidRequestError: two fields contradict each other.
    """
    asks = asked(body, gap_of(body))
    return drafting.params(
        asks.completed(strategy=body.strategy, selection=None, token_healing=token_healing),
        asks_for_paper=body.asks_for_paper,
        ngram_is_named=body.ngram_model is not None,
    )


def session_of(body: DraftsRequest, header: str | None) -> str | None:
    """The request's session, from the body, or else from the header `x-session-id`.

    Raises:
        InvalidRequestError: the header is empty or too long.
    """
    if body.session_id is not None or header is None:
        return body.session_id
    if not 1 <= len(header) <= MAX_SESSION_ID:
        message = f"x-session-id must have 1 to {MAX_SESSION_ID} characters, got {len(header)}."
        raise InvalidRequestError(message, param="session_id")
    return header


def deadline_of(body: DraftsRequest) -> float | None:
    """When the request's own time limit is over, on time.monotonic; None: it has none."""
    return None if body.timeout_ms is None else time.monotonic() + body.timeout_ms / 1000


def request_warnings(body: DraftsRequest, params: GenerationParams, *, has_ngram_model: bool) -> list[str]:
    """Warnings about fields of the request that have no effect.

    Args:
        body: the request.
        params: those that it runs with.
        has_ngram_model: whether there is an n-gram model to score with.
    """
    warnings = [*body.strategy_warnings(params.strategy), *display_warnings(body.min_probability_shown, params)]
    if body.alpha and not has_ngram_model and params.superposes:
        warnings.append("alpha has no effect: the request runs without an n-gram model.")
    if body.ngram_model is not None and body.alpha == 0 and params.superposes:
        warnings.append("ngram_model has no effect with alpha 0.")
    if body.token_healing and not isinstance(body.prompt, str):
        warnings.append("token_healing has no effect: the prompt is given as token ids.")
    return warnings


def drafts_response(drafts_id: str, model_name: str, output: GenerationOutput, warnings: list[str]) -> DraftsResponse:
    """The answer for an output of the engine; `warnings` come before the engine's own."""
    usage = output.usage
    return DraftsResponse(
        id=drafts_id,
        model=model_name,
        drafts=[Draft.model_validate(draft, from_attributes=True) for draft in output.drafts],
        usage=DraftsUsage(
            **asdict(usage),
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
        ),
        timings=DraftsTimings.model_validate(output.timings, from_attributes=True),
        warnings=[*warnings, *output.warnings],
    )


def _replaces(replaced: Replaced | None) -> Replaces | None:
    return None if replaced is None else Replaces.model_validate(replaced)


def drafts_snapshot(drafts_id: str, snapshot: Snapshot) -> DraftsSnapshot:
    """The drafts after a step, as an event of the stream."""
    return DraftsSnapshot(
        id=drafts_id,
        step=snapshot.num_steps,
        stable_text=snapshot.stable_text,
        drafts=[
            SnapshotDraft(index=index, text=draft.text, score=draft.score, replaces=_replaces(draft.replaces))
            for index, draft in enumerate(snapshot.drafts)
        ],
        rows_by_depth=snapshot.rows_by_depth,
    )
