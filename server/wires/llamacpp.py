"""llama.cpp's wire, as llama.vim, llama.vscode and Continue use it: `POST /infill` and `POST /completion`.

Samplers are ignored with a warning, other unknown fields without one. Drafts are sent when all of them are final, even
in a stream: with superposed decoding a draft may be replaced until its end.
"""

import json
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import Field, PlainValidator, WithJsonSchema, model_validator
from pydantic.json_schema import SkipJsonSchema

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.outputs import DraftOutput, GenerationOutput
from superdraft.decoding.params import MAX_SEED
from superdraft.decoding.text.fim import ContextFile, Gap
from superdraft.server.edge.error_map import failure_of
from superdraft.server.edge.refusals import ClientGoneError
from superdraft.server.service import DraftingRequest, Service
from superdraft.server.wires.common import (
    MAX_PATH_CHARS,
    MAX_SNIPPETS,
    SPECIAL_TOKENS,
    Boolean,
    Integer,
    Number,
    OnePrompt,
    ServiceDep,
    TolerantStop,
    engine_prompt,
)
from superdraft.server.wires.editors import EditorRequest, complete, cut_dedent, drafting_request, fill, with_cut_drafts
from superdraft.server.wires.json_body import documented, json_body

_EVENTS: dict[str, Any] = {"content": {"text/event-stream": {}}, "description": "The drafts; with `stream`, as events."}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: _EVENTS,
    400: {"description": "A field or the body is wrong. Errors have llama.cpp's shape."},
    413: {"description": "The body is too large."},
    500: {"description": "The server failed on this request."},
    503: {"description": "The server is shutting down."},
}


# Schemas


def _extra(value: Any) -> tuple[ContextFile, ...]:
    chunks = value if isinstance(value, list) else [None]
    if len(chunks) > MAX_SNIPPETS:
        raise ValueError(f"must have at most {MAX_SNIPPETS} texts")
    files = []
    for chunk in chunks:
        text, name = (chunk.get("text"), chunk.get("filename")) if isinstance(chunk, dict) else (None, None)
        if not isinstance(text, str) or not isinstance(name, str | None):
            raise ValueError('must be a list of {"text": string, "filename": string}, the filename being optional')
        if len(name or "") > MAX_PATH_CHARS:
            raise ValueError(f"must have filenames of at most {MAX_PATH_CHARS} characters")
        files.append(ContextFile(name or "", text))
    return tuple(files)


_EXTRA_SCHEMA = {
    "type": "array",
    "maxItems": MAX_SNIPPETS,
    "items": {
        "type": "object",
        "properties": {"text": {"type": "string"}, "filename": {"type": "string", "maxLength": MAX_PATH_CHARS}},
        "required": ["text"],
    },
}


_SAMPLERS = (
    *("samplers", "dynatemp_range", "dynatemp_exponent", "top_k", "top_p", "min_p", "top_n_sigma", "typical_p"),
    *("xtc_probability", "xtc_threshold", "repeat_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty"),
    *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    *("mirostat", "mirostat_tau", "mirostat_eta", "logit_bias", "ignore_eos", "grammar", "json_schema", "n_probs"),
)
"""Fields by which llama.cpp chooses tokens, and which are ignored here."""


WARM_UP_TIMEOUT_S = 10.0
"""A request that only runs its prompt gives way to all others. On a busy server it is answered after this time."""


class LlamaCppRequest(EditorRequest):
    """Fields of both routes. A null field means its default. `unused` names the samplers that the body sets."""

    n_predict: Integer = Field(
        default=-1, description="New tokens per draft; 0: only run the prompt; negative: the server's limit."
    )
    n_cmpl: Integer = Field(default=1, ge=1, description="Drafts; above 1 the answer is an array, best first.")
    stop: TolerantStop = ()
    stream: Boolean = False
    response_fields: list[Annotated[str, Field(max_length=128)]] = Field(
        default=[], max_length=64, description='Answer with these fields only; "timings/prompt_n" is a nested one.'
    )
    n_indent: Integer = Field(
        default=0, ge=0, description="A draft ends before a line that is indented less than this."
    )
    t_max_prompt_ms: Number = Field(
        default=0,
        ge=0,
        description="Ignored, as by llama.cpp: what a request has run of its prompt is kept for the next one.",
    )
    t_max_predict_ms: Number = Field(
        default=0,
        ge=0,
        description="This long after the first tokens of the drafts, the drafts so far are the answer; 0: no limit.",
    )
    seed: Integer = Field(
        default=-1, le=MAX_SEED, description="For the sampling strategies; negative: a new one each time."
    )

    unused: SkipJsonSchema[tuple[str, ...]] = Field(default=(), exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _find_unused(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {**data, "unused": tuple(name for name in _SAMPLERS if data.get(name) is not None)}

    @property
    def draft_timeout_s(self) -> float | None:
        """The time limit of the drafts; None: no limit."""
        return None if self.t_max_predict_ms == 0 else min(self.t_max_predict_ms, 1e9) / 1000

    @property
    def warnings(self) -> list[str]:
        """About fields that have no effect."""
        return [f"These fields have no effect on this server: {', '.join(self.unused)}."] if self.unused else []

    def cut(self, text: str) -> str:
        """The part of a draft to show: up to a line that is indented too little."""
        return cut_dedent(text, self.n_indent)


class InfillRequest(LlamaCppRequest):
    """`POST /infill`: the text around the cursor. `prompt` is the text between `input_prefix` and the cursor."""

    input_prefix: str
    input_suffix: str
    input_extra: Annotated[tuple[ContextFile, ...], PlainValidator(_extra), WithJsonSchema(_EXTRA_SCHEMA)] = ()
    prompt: str = ""

    @property
    def gap(self) -> Gap:
        """The place to fill."""
        return Gap(self.input_prefix + self.prompt, self.input_suffix, self.input_extra)

    @property
    def wants_lines(self) -> bool:
        """Whether the editor shows no more than a line of each draft: llama.vscode, inside a line."""
        return self.n_cmpl > 1 and self.input_suffix.partition("\n")[0].strip() != ""

    def seen(self, text: str) -> str:
        """What the editor makes of a draft: on a blank line it asks without the indent, and removes it from drafts."""
        text = text.rstrip("\r\n")
        if self.prompt:
            return text
        return text[: self.n_indent].lstrip(" \t") + text[self.n_indent :]


class LlamaCppCompletionRequest(LlamaCppRequest):
    """`POST /completion`: continue a prompt."""

    prompt: OnePrompt
    special_tokens: Boolean | None = SPECIAL_TOKENS


# Routes


class LlamaCppRoute(APIRoute):
    """Answers errors in llama.cpp's shape, where `code` is the HTTP status."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler with the errors caught."""
        handle = super().get_route_handler()

        async def handle_errors(request: Request) -> Response:
            try:
                return await handle(request)
            except ClientGoneError:
                raise
            except Exception as error:
                failure = failure_of(error)
                if failure.detail.code == "internal_error":
                    raise  # the middleware logs it
                failure.log()
                detail = {"code": failure.status, "message": failure.detail.message, "type": failure.detail.type}
                return JSONResponse({"error": detail}, failure.status, headers=failure.headers)

        return handle_errors


router = APIRouter(tags=["llama.cpp"], route_class=LlamaCppRoute, responses=_RESPONSES)


@router.post("/infill", openapi_extra=documented(InfillRequest), summary="llama.cpp's fill-in-the-middle")
async def infill(
    http: Request, service: ServiceDep, body: Annotated[InfillRequest, Depends(json_body(InfillRequest))]
) -> Response:
    """Fill the gap between two texts. With `n_predict` 0, only run the prompt, so that the next request is faster."""
    drafting = _drafting_request(http, service, body)
    filled = await fill(http, service, drafting, body.gap, body.cut, body.seen, single_line=body.wants_lines)
    return _response(body, *filled, service.model_name)


@router.post("/completion", openapi_extra=documented(LlamaCppCompletionRequest), summary="llama.cpp's own completion")
async def completion(
    http: Request,
    service: ServiceDep,
    body: Annotated[LlamaCppCompletionRequest, Depends(json_body(LlamaCppCompletionRequest))],
) -> Response:
    """Continue a prompt."""
    special_tokens = service.settings.special_tokens if body.special_tokens is None else body.special_tokens
    drafting = _drafting_request(http, service, body)
    drafting = replace(
        drafting,
        prompts={drafting.id: engine_prompt(body.prompt, special_tokens=special_tokens)},
        cut=lambda _, output: with_cut_drafts(output, body.cut),
    )
    return _response(body, await complete(http, service, drafting), False, service.model_name)


def _drafting_request(http: Request, service: Service, body: LlamaCppRequest) -> DraftingRequest:
    limit = service.engine.config.max_num_drafts
    if body.n_cmpl > limit:
        raise InvalidRequestError(f"n_cmpl must be at most {limit} on this server, got {body.n_cmpl}.", param="n_cmpl")
    drafting = drafting_request(
        http,
        service,
        body,
        f"infill-{uuid.uuid4().hex}",
        num_drafts=body.n_cmpl,
        max_tokens=None if body.n_predict < 0 else body.n_predict,
        stop=body.stop,
        seed=None if body.seed < 0 else body.seed,
    )
    return replace(
        drafting,
        draft_timeout_s=body.draft_timeout_s,
        is_warm_up=body.n_predict == 0,
        deadline_s=time.monotonic() + WARM_UP_TIMEOUT_S if body.n_predict == 0 else None,
        takes_feedback=False,  # llama.cpp's answers have no id
    )


def _response(body: LlamaCppRequest, output: GenerationOutput, is_truncated: bool, model: str) -> Response:
    answers = [_answer(body, draft, output, is_truncated, model) for draft in output.drafts]
    if body.stream:
        events = [event for answer in answers for event in _events(answer, body.response_fields)]
        content = "".join(f"data: {json.dumps(event, separators=(',', ':'))}\n\n" for event in events)
        return Response(content, media_type="text/event-stream")
    picked = [_picked(answer, body.response_fields) for answer in answers]
    # JSONResponse leaves no space after a colon, and llama.vim searches for `"content":"`.
    return JSONResponse(picked if body.n_cmpl > 1 else picked[0])


def _answer(
    body: LlamaCppRequest, draft: DraftOutput, output: GenerationOutput, is_truncated: bool, model: str
) -> dict[str, Any]:
    usage, num_predicted = output.usage, len(draft.token_ids)
    stop_type, stopping_word = _stop_of(draft, body.stop)
    return {
        "index": draft.index,
        "content": draft.text,
        "tokens": [],
        "id_slot": 0,
        "stop": True,
        "model": model,
        "tokens_predicted": num_predicted,
        "tokens_evaluated": usage.prompt_tokens,
        "has_new_line": "\n" in draft.text,
        "truncated": is_truncated,
        "stop_type": stop_type,
        "stopping_word": stopping_word,
        "tokens_cached": usage.cached_tokens,
        "warnings": [*body.warnings, *output.warnings],
        "timings": {
            "cache_n": usage.cached_tokens,
            **_speed("prompt", usage.prompt_tokens - usage.cached_tokens, output.timings.prefill_ms),
            **_speed("predicted", num_predicted, output.timings.decode_ms),
        },
    }


def _stop_of(draft: DraftOutput, stops: Sequence[str]) -> tuple[str, str]:
    """llama.cpp's `stop_type` and `stopping_word`; a draft that was cut for being improbable counts as "eos"."""
    if draft.finish_reason == "length":
        return "limit", ""
    decoded = "".join(draft.tokens)  # unlike the text, with the stop string that ended it
    found = [(decoded.find(stop), stop) for stop in stops if stop in decoded]
    return ("word", min(found)[1]) if found else ("eos", "")


def _speed(what: str, num_tokens: int, milliseconds: float) -> dict[str, float]:
    return {
        f"{what}_n": num_tokens,
        f"{what}_ms": round(milliseconds, 3),
        f"{what}_per_token_ms": round(milliseconds / num_tokens, 3) if num_tokens else 0.0,
        f"{what}_per_second": round(1e3 * num_tokens / milliseconds, 3) if milliseconds else 0.0,
    }


def _events(answer: dict[str, Any], fields: Sequence[str]) -> list[dict[str, Any]]:
    """The event with a draft's text, and the event that ends the draft and holds everything else."""
    head = {name: answer[name] for name in ("index", "content", "tokens", "id_slot")}
    chunk = {**head, "stop": False, **{name: answer[name] for name in ("tokens_predicted", "tokens_evaluated")}}
    return [chunk, _picked({**answer, "content": ""}, fields)]


def _picked(answer: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """The requested fields, under the names by which they were requested; every field if none was."""
    if not fields:
        return answer
    return {name: value for name in fields if (value := _nested(answer, name)) is not None}


def _nested(answer: dict[str, Any], name: str) -> Any:
    value: Any = answer
    for part in name.split("/"):
        value = value.get(part) if isinstance(value, dict) else None
    return value
