"""What the editors' routes share: a place in a text becomes a prompt, and a run's drafts become suggestions."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from fastapi import Request

from superdraft.decoding.outputs import DraftOutput, GenerationOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.prompt import Prompt
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.fim import Budget, FimTokenizer, FimTokens, Gap, find_fim_tokens, gap_prompt
from superdraft.decoding.text.gap_cut import LineEnd, cut_for_gap, line_end_of, with_line_ends
from superdraft.server.bridge.engine_protocol import DecodingEngine
from superdraft.server.bridge.fan_out import Share
from superdraft.server.service import Service, unless_client_gone
from superdraft.server.settings import Settings
from superdraft.server.wires.common import Strategy

Cut = Callable[[str], str]

TOO_LONG = "prompt and suffix are too long together with max_tokens"
NOT_SEEN = (
    "The model has not seen the text after the gap: it has no tokens for filling gaps, or --no-fim turns them off. "
    "Drafts only keep out of that text."
)

_NOTHING = DraftOutput(0, "", (), (), 0.0, (), "length")
"""For a request whose time was over before its first token: an editor's route always has an answer."""


@dataclass(frozen=True, slots=True)
class EditorRequest:
    """One request of an editor.

    Attributes:
        name: the engine's name for it.
        params: what is wanted.
        key: what its twins have in common; None: it has none.
        timeout_s: after this time, the drafts so far.
        cut: what of a draft's text is shown.
        line_end: what its line ends become; None: they stay.
    """

    name: str
    params: GenerationParams
    key: str | None
    timeout_s: float | None = None
    cut: Cut = str
    line_end: LineEnd | None = None


@dataclass(frozen=True, slots=True)
class PreparedGap:
    """What the engine is fed for a gap.

    Attributes:
        prompt: to go on from.
        is_truncated: part of the gap's text was left out.
        warnings: what to tell the caller of it.
    """

    prompt: Prompt
    is_truncated: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Filled:
    """A gap's drafts.

    Attributes:
        share: the drafts, at least one.
        is_truncated: the text was too long and lost some of its ends.
        warnings: what to tell the caller, the engine's warnings included.
    """

    share: Share
    is_truncated: bool
    warnings: list[str]


def fim_tokens_of(engine: DecodingEngine, settings: Settings) -> FimTokens | None:
    """The fill-in-the-middle tokens to use; None if the model has none, or the settings say so."""
    return find_fim_tokens(_tokenizer(engine).vocabulary) if settings.fim else None


def editor_params(
    service: Service,
    *,
    num_drafts: int = 1,
    max_tokens: int | None = None,
    stop: tuple[str, ...] = (),
    strategy: Strategy | None = None,
    temperature: float = 1.0,
    seed: int | None = None,
) -> GenerationParams:
    """Parameters for an editor, which asks for more tokens than it will ever show: never over the server's limit.

    Args:
        service: the served model.
        num_drafts: to show.
        max_tokens: of each draft; None: the limit, `editor_max_tokens`.
        stop: a draft ends before the first of these.
        strategy: None: the server's.
        temperature: of the sampling strategies, and brought into their range.
        seed: of the sampling strategies.
    """
    limit = min(service.settings.editor_max_tokens, service.engine.engine.max_model_len // 2)
    num_tokens = limit if max_tokens is None else min(max_tokens, limit)
    strategy = strategy or service.settings.default_strategy
    return GenerationParams(
        num_drafts=num_drafts,
        max_tokens=num_tokens,
        **service.drafting.fill(strategy=strategy, num_drafts=num_drafts, max_tokens=num_tokens),
        stop=stop,
        strategy=strategy,
        temperature=min(max(temperature, 0.0), 2.0),
        seed=seed,
        token_healing=service.settings.token_healing,
    )


async def complete(http: Request, service: Service, request: EditorRequest, prompt: Prompt) -> Share:
    """Drafts, at least one, that go on from a prompt. A client that leaves ends its request.

    Raises:
        SuperdraftError: the engine's.
        ClientGoneError: the client left.
    """
    scorer = await service.ngram_models.current_default()

    async def run(params: GenerationParams) -> GenerationOutput:
        output = await service.engine.generate(
            EngineRequest(request.name, prompt, params, scorer, timeout_s=request.timeout_s)
        )
        return with_cut_drafts(output, request.cut, request.line_end)

    share = await unless_client_gone(http, service.fan_out.draft(request.key, request.params, run))
    service.fan_out.remember(request.name, share.rank)
    return share


async def fill(http: Request, service: Service, request: EditorRequest, gap: Gap) -> Filled:
    """Drafts for a gap in a text.

    Raises:
        SuperdraftError: the engine's.
        ClientGoneError: the client left.
    """
    max_context_tokens = service.engine.engine.max_model_len // 2
    prepared = await prepare_gap(service, gap, request.params.max_tokens, max_context_tokens)
    shorten = request.cut
    request = replace(request, cut=lambda text: cut_for_gap(shorten(text), gap), line_end=line_end_of(gap))
    share = await complete(http, service, request, prepared.prompt)
    return Filled(share, prepared.is_truncated, [*prepared.warnings, *share.output.warnings])


async def prepare_gap(service: Service, gap: Gap, max_tokens: int, max_context_tokens: int = 0) -> PreparedGap:
    """The prompt for a gap that leaves room for a draft of `max_tokens`.

    Args:
        service: the served model. One without tokens for gaps, or with these turned off, sees the prefix alone.
        gap: the place to fill.
        max_tokens: of each draft.
        max_context_tokens: for the gap's context.
    """
    engine = service.engine.engine
    budget = Budget(max(0, engine.max_model_len - max_tokens), max_context_tokens)
    # Not on the event loop: an editor may send a hundred thousand characters.
    prompt = await asyncio.to_thread(gap_prompt, gap, service.fim, _tokenizer(engine), budget)
    warnings = [NOT_SEEN] if service.fim is None and gap.suffix else []
    if prompt.is_truncated:
        warnings.append(f"{TOO_LONG}: their far ends were left out.")
    return PreparedGap(prompt.prompt, prompt.is_truncated, tuple(warnings))


def with_cut_drafts(output: GenerationOutput, cut: Cut, line_end: LineEnd | None = None) -> GenerationOutput:
    """The output with shortened drafts: no text twice, an empty one only if there is no other, at least one.

    Args:
        output: the engine's.
        cut: the beginning of a draft that is shown.
        line_end: what its line ends become; None: they stay.
    """
    by_text: dict[str, DraftOutput] = {}
    for draft in output.drafts:
        kept = cut(draft.text)
        text = kept if line_end is None else with_line_ends(kept, line_end)
        reason = draft.finish_reason if kept == draft.text else "stop"
        by_text.setdefault(text, replace(draft, text=text, finish_reason=reason))
    if len(by_text) > 1:
        by_text.pop("", None)
    drafts = tuple(replace(draft, index=index) for index, draft in enumerate(by_text.values()))
    return replace(output, drafts=drafts or (_NOTHING,))


def cut_dedent(text: str, num_columns: int) -> str:
    """The part of a draft before its first whole new line that is indented by fewer than `num_columns` characters.

    Blank lines do not count, nor does a last line of white space, which may not be finished.
    """
    first, *lines = text.split("\n")
    kept = [first]
    for line in lines:
        if line.strip() and len(line) - len(line.lstrip()) < num_columns:
            break
        kept.append(line)
    return text if len(kept) == len(lines) + 1 else "\n".join(kept)


def _tokenizer(engine: DecodingEngine) -> FimTokenizer:
    return cast(FimTokenizer, engine.tokenizer)
