"""Shared by the editors' wires: a place in a text becomes a prompt, and the drafts for it become suggestions."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from fastapi import Request

from superdraft.decoding.outputs import DraftOutput, GenerationOutput
from superdraft.decoding.prompt import Prompt
from superdraft.decoding.text.fim import Budget, FimTokens, Gap, find_fim_tokens, gap_prompt
from superdraft.decoding.text.gap_cut import LineEnd, cut_for_gap, has_text_after, line_end_of, with_line_ends
from superdraft.decoding.text.trimming import as_read
from superdraft.server.bridge.engine_protocol import DecodingEngine
from superdraft.server.display import Display
from superdraft.server.drafting import Asked
from superdraft.server.service import DraftingRequest, Service
from superdraft.server.settings import Settings
from superdraft.server.wires.common import NO_DRAFT, WITHHELD, unless_client_gone

Cut = Callable[[str], str]

TOO_LONG = "prompt and suffix are too long together with max_tokens"
NOT_SEEN = (
    "The model has not seen the text after the gap: it has no tokens for filling gaps, or --no-fim turns them off. "
    "Drafts only keep out of that text."
)


@dataclass(frozen=True, slots=True)
class PreparedGap:
    """The engine's prompt for a gap.

    Attributes:
        prompt: what the engine continues.
        is_truncated: part of the gap's text was left out.
        warnings: for the client.
    """

    prompt: Prompt
    is_truncated: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Filled:
    """The drafts for a gap.

    Attributes:
        output: the engine's, with at least one draft.
        is_truncated: the text was too long, so its far ends were left out.
        warnings: for the client, the engine's own included.
    """

    output: GenerationOutput
    is_truncated: bool
    warnings: list[str]


def fim_tokens_of(engine: DecodingEngine, settings: Settings) -> FimTokens | None:
    """The fill-in-the-middle tokens to use; None: the model has none, or the settings turn them off."""
    return find_fim_tokens(engine.tokenizer.vocabulary) if settings.fim else None


def asked(
    service: Service,
    *,
    num_drafts: int = 1,
    max_tokens: int | None = None,
    stop: tuple[str, ...] = (),
    temperature: float = 1.0,
    seed: int | None = None,
) -> Asked:
    """The engine parameters that an editor's request sets.

    Args:
        service: the served model.
        num_drafts: drafts in the answer.
        max_tokens: of each draft, at most the server's `editor_max_tokens`, since editors ask for more than they show;
            None: that limit.
        stop: a draft ends before the first of these strings.
        temperature: of the sampling strategies; brought into the range that they take.
        seed: of the sampling strategies.
    """
    limit = min(service.settings.editor_max_tokens, service.engine.max_model_len // 2)
    return Asked(
        num_drafts=num_drafts,
        max_tokens=limit if max_tokens is None else min(max_tokens, limit),
        stop=stop,
        temperature=min(max(temperature, 0.0), 2.0),
        seed=seed,
    )


def shown_from(service: Service, own: float | None) -> Display | None:
    """What is withheld of the answer to an editor; None: nothing.

    Args:
        service: the served model.
        own: the request's `min_probability_shown`; None: the server's for editors.
    """
    minimum = service.settings.editor_min_probability_shown if own is None else own
    return Display(Gap(""), minimum) if minimum else None


async def complete(
    http: Request,
    service: Service,
    request: DraftingRequest,
    prompt: Prompt,
    cut: Cut = str,
    line_end: LineEnd | None = None,
    seen: Cut = str,
) -> GenerationOutput:
    """Drafts that continue a prompt, at least one. A client that leaves ends its request.

    Args:
        http: its body has been read.
        service: the served model.
        request: without prompts and cut.
        prompt: what the engine continues.
        cut: returns the part of a draft's text to show.
        line_end: the line end in the drafts; None: unchanged.
        seen: what the editor makes of a draft's text; drafts that it makes the same count once.

    Raises:
        NotFoundError: the named model is not served here.
        SuperdraftError: raised by the engine.
        ClientGoneError: the client left.
    """
    drafting = replace(
        request,
        prompts={request.id: prompt},
        cut=lambda _, output: with_cut_drafts(output, cut, line_end, seen),
    )
    drafted = await unless_client_gone(http, service.draft(drafting))
    output = drafted.outputs[0]
    return output if output.drafts else replace(output, drafts=(WITHHELD,))


async def fill(
    http: Request, service: Service, request: DraftingRequest, gap: Gap, cut: Cut = str, seen: Cut = str
) -> Filled:
    """Drafts for a gap in a text.

    Args:
        http: its body has been read.
        service: the served model.
        request: without prompts and cut.
        gap: the place to fill.
        cut: returns the part of a draft's text that the editor wants; the gap may shorten it further.
        seen: what the editor makes of a draft's text; drafts that it makes the same count once.

    Raises:
        NotFoundError: the named model is not served here.
        SuperdraftError: raised by the engine.
        ClientGoneError: the client left.
    """
    prepared = await prepare_gap(http, service, gap, request.asked.max_tokens, service.engine.max_model_len // 2)
    if has_text_after(gap):
        request = replace(request, asked=replace(request.asked, single_line=True))
    output = await complete(
        http, service, request, prepared.prompt, lambda text: cut_for_gap(cut(text), gap), line_end_of(gap), seen
    )
    return Filled(output, prepared.is_truncated, [*prepared.warnings, *output.warnings])


async def prepare_gap(
    http: Request, service: Service, gap: Gap, max_tokens: int, max_context_tokens: int = 0
) -> PreparedGap:
    """The prompt for a gap, with room for a draft of `max_tokens`. A client that leaves ends the wait for it.

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
    return PreparedGap(prompt.prompt, prompt.is_truncated, tuple(warnings))


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
