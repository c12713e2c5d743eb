"""Shared by the editors' wires: a place in a text becomes a prompt, and the drafts for it become suggestions."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from fastapi import Request
from pydantic import Field

from superdraft.decoding.outputs import DraftOutput, GenerationOutput
from superdraft.decoding.text.fim import Budget, FimTokens, Gap, GapPrompt, find_fim_tokens, gap_prompt
from superdraft.decoding.text.gap_cut import LineEnd, cut_for_gap, has_text_after, line_end_of, with_line_ends
from superdraft.decoding.text.trimming import as_read
from superdraft.server.bridge.engine_protocol import DecodingEngine
from superdraft.server.bridge.fan_out import twin_key
from superdraft.server.display import Display
from superdraft.server.drafting import Asked
from superdraft.server.service import DraftingRequest, Service
from superdraft.server.settings import Settings
from superdraft.server.wires.common import NO_DRAFT, WITHHELD, Number, WireRequest, sender, unless_client_gone

Cut = Callable[[str], str]

TOO_LONG = "prompt and suffix are too long together with max_tokens"
NOT_SEEN = (
    "The model has not seen the text after the gap: it has no tokens for filling gaps, or --no-fim turns them off. "
    "Drafts only keep out of that text."
)


class EditorRequest(WireRequest):
    """Fields that the editors' wires have in common. A null field means its default; unknown fields are ignored."""

    temperature: Number = Field(default=1.0, description="For the sampling strategies.")
    min_probability_shown: Number | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Withhold drafts whose first word is less probable, with selection distinct. If none is left, the "
        "text is empty. Absent: --editor-min-probability-shown.",
    )


def fim_tokens_of(engine: DecodingEngine, settings: Settings) -> FimTokens | None:
    """The fill-in-the-middle tokens to use; None: the model has none, or the settings turn them off."""
    return find_fim_tokens(engine.tokenizer.vocabulary) if settings.fim else None


def drafting_request(
    http: Request,
    service: Service,
    body: EditorRequest,
    answer_id: str,
    *,
    num_drafts: int = 1,
    max_tokens: int | None = None,
    stop: tuple[str, ...] = (),
    seed: int | None = None,
) -> DraftingRequest:
    """An editor's request without its prompt, its model and its cut.

    Args:
        http: its body has been read.
        service: the served model.
        body: that body.
        answer_id: of the answer.
        num_drafts: drafts in the answer.
        max_tokens: of each draft, at most the server's `editor_max_tokens`, since editors ask for more than they show;
            None: that limit.
        stop: a draft ends before the first of these strings.
        seed: of the sampling strategies, into whose range the temperature is brought.
    """
    settings = service.settings
    limit = min(settings.editor_max_tokens, service.engine.max_model_len // 2)
    minimum = body.min_probability_shown
    if minimum is None:
        minimum = settings.editor_min_probability_shown
    return DraftingRequest(
        sender=sender(),
        id=answer_id,
        asked=Asked(
            num_drafts=num_drafts,
            max_tokens=limit if max_tokens is None else min(max_tokens, limit),
            stop=stop,
            temperature=min(max(body.temperature, 0.0), 2.0),
            seed=seed,
        ),
        twin_key=twin_key(http, body),
        display=Display(Gap(""), minimum) if minimum else None,
    )


async def complete(http: Request, service: Service, request: DraftingRequest) -> GenerationOutput:
    """Drafts for the one prompt of a request, at least one. A client that leaves ends its request.

    Raises:
        NotFoundError: the named model is not served here.
        SuperdraftError: raised by the engine.
        ClientGoneError: the client left.
    """
    drafted = await unless_client_gone(http, service.draft(request))
    output = drafted.outputs[0]
    return output if output.drafts else replace(output, drafts=(WITHHELD,))


async def fill(
    http: Request,
    service: Service,
    request: DraftingRequest,
    gap: Gap,
    cut: Cut = str,
    seen: Cut = str,
    *,
    single_line: bool = False,
) -> tuple[GenerationOutput, bool]:
    """Drafts for a gap in a text, at least one, and whether the text was too long, so that its far ends were left out.

    Args:
        http: its body has been read.
        service: the served model.
        request: without prompts and cut.
        gap: the place to fill.
        cut: returns the part of a draft's text that the editor wants; the gap may shorten it further.
        seen: what the editor makes of a draft's text; drafts that it makes the same count once.
        single_line: the editor shows no more than a line, whatever follows the cursor.

    Raises:
        Exception: as `complete`.
    """
    max_tokens = request.asked.max_tokens
    prompt, warnings = await prepare_gap(http, service, gap, max_tokens, service.engine.max_model_len // 2)
    if single_line or has_text_after(gap):
        request = replace(request, asked=replace(request.asked, single_line=True))
    drafting = replace(
        request, prompts={request.id: prompt.prompt}, cut=lambda _, output: cut_at_gap(output, gap, cut, seen)
    )
    output = await complete(http, service, drafting)
    return replace(output, warnings=(*warnings, *output.warnings)), prompt.is_truncated


async def prepare_gap(
    http: Request, service: Service, gap: Gap, max_tokens: int, max_context_tokens: int = 0
) -> tuple[GapPrompt, list[str]]:
    """The prompt for a gap, with room for a draft of `max_tokens`, and warnings about it.

    A client that leaves ends the wait for it.

    Args:
        http: its body has been read.
        service: the served model. Without fill-in-the-middle tokens, or with these turned off, it sees only the prefix.
        gap: the place to fill.
        max_tokens: of each draft.
        max_context_tokens: for the gap's context.

    Raises:
        EngineStoppedError: the server is shutting down.
        ClientGoneError: the client left.
    """
    engine = service.engine
    budget = Budget(max(0, engine.max_model_len - max_tokens), max_context_tokens)
    # Not on the event loop: an editor may send a hundred thousand characters.
    encode = partial(gap_prompt, gap, service.fim, engine.tokenizer, budget)
    prompt = await unless_client_gone(http, engine.encoded(encode))
    warnings = [NOT_SEEN] if service.fim is None and gap.suffix else []
    if prompt.is_truncated:
        warnings.append(f"{TOO_LONG}: their far ends were left out.")
    return prompt, warnings


def cut_at_gap(output: GenerationOutput, gap: Gap, cut: Cut = str, seen: Cut = str) -> GenerationOutput:
    """The output with drafts that end where the text after the gap begins, and have its line ends.

    See `with_cut_drafts`; `cut` comes before the gap's own.
    """
    return with_cut_drafts(output, lambda text: cut_for_gap(cut(text), gap), line_end_of(gap), seen)


def with_cut_drafts(
    output: GenerationOutput, cut: Cut, line_end: LineEnd | None = None, seen: Cut = str
) -> GenerationOutput:
    """The output with shortened drafts: at least one, none that reads like a better one, a blank one only if alone.

    Args:
        output: the engine's.
        cut: returns the part of a draft's text to show.
        line_end: the line end in the drafts; None: unchanged.
        seen: what the editor makes of a draft's text; drafts that it makes the same count once.
    """
    by_sight: dict[str, DraftOutput] = {}
    for draft in output.drafts:
        kept = cut(draft.text)
        text = kept if line_end is None else with_line_ends(kept, line_end)
        reason = draft.finish_reason if kept == draft.text else "stop"
        is_cut_to_blanks = kept != draft.text and not kept.strip()
        sight = "" if is_cut_to_blanks else as_read(seen(text))
        by_sight.setdefault(sight, replace(draft, text=text, finish_reason=reason))
    if len(by_sight) > 1:
        by_sight.pop("", None)
    drafts = tuple(replace(draft, index=index) for index, draft in enumerate(by_sight.values()))
    return replace(output, drafts=drafts or (NO_DRAFT,))


def cut_dedent(text: str, num_columns: int) -> str:
    """The part of a draft before its first complete line that is indented by fewer than `num_columns` characters.

    Blank lines do not count, nor does a last line of white space, which may be unfinished.
    """
    first, *lines = text.split("\n")
    kept = [first]
    for line in lines:
        if line.strip() and len(line) - len(line.lstrip()) < num_columns:
            break
        kept.append(line)
    return text if len(kept) == len(lines) + 1 else "\n".join(kept)
