"""What the editors' routes share: a place in a text becomes a prompt, and a run's drafts become suggestions."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from fastapi import Request

from superdraft.decoding.fim import Budget, FimTokenizer, FimTokens, Gap, find_fim_tokens, gap_prompt
from superdraft.decoding.gap_cut import cut_overlap
from superdraft.decoding.outputs import DraftOutput, GenerationOutput
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.prompt import Prompt
from superdraft.server.engine_protocol import DecodingEngine
from superdraft.server.fan_out import Share
from superdraft.server.schemas import Strategy
from superdraft.server.service import Service, unless_client_gone
from superdraft.server.settings import Settings

Cut = Callable[[str], str]

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
        user: whose personal n-grams have a say.
    """

    name: str
    params: GenerationParams
    key: str | None
    timeout_s: float | None = None
    cut: Cut = str
    user: str | None = None


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
    scorer = await service.default_scorer(request.user)

    async def run(params: GenerationParams) -> GenerationOutput:
        output = await service.engine.generate(request.name, prompt, params, scorer, timeout_s=request.timeout_s)
        return with_cut_drafts(output, request.cut)

    share = await unless_client_gone(http, service.fan_out.draft(request.key, request.params, run))
    service.fan_out.remember(request.name, share.rank)
    return share


async def fill(http: Request, service: Service, request: EditorRequest, gap: Gap) -> tuple[Share, bool]:
    """Drafts, at least one, for a gap in a text; and whether the text was too long and lost some of its ends.

    Raises:
        SuperdraftError: the engine's.
        ClientGoneError: the client left.
    """
    engine = service.engine.engine
    budget = Budget(engine.max_model_len - request.params.max_tokens, engine.max_model_len // 2)
    # Not on the event loop: an editor may send a hundred thousand characters.
    prompt = await asyncio.to_thread(gap_prompt, gap, service.fim, _tokenizer(engine), budget)
    if service.fim is None:
        shorten = request.cut
        request = replace(request, cut=lambda text: cut_overlap(shorten(text), gap.suffix))
    return await complete(http, service, request, prompt.prompt), prompt.is_truncated


def with_cut_drafts(output: GenerationOutput, cut: Cut) -> GenerationOutput:
    """The output with shortened drafts: no text twice, an empty one only if there is no other, at least one."""
    by_text: dict[str, DraftOutput] = {}
    for draft in output.drafts:
        text = cut(draft.text)
        if text not in by_text:
            by_text[text] = draft if text == draft.text else replace(draft, text=text, finish_reason="stop")
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
