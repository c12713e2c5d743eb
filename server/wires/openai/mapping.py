"""The OpenAI wire's request as engine parameters, and the engine's outputs as its answer."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.outputs import DraftOutput, GenerationOutput, TokenLogprob
from superdraft.decoding.params import GenerationParams
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.service import Service
from superdraft.server.wires.common import PromptTokensDetails, bias_pairs
from superdraft.server.wires.openai.schemas import (
    Choice,
    CompletionRequest,
    CompletionUsage,
    Logprobs,
)
from superdraft.server.wires.request_warnings import strategy_warnings

LOGPROB_FLOOR = -9999.0  # JSON has no -inf
MIN_PENALISED_CANDIDATES = 16
MIN_TOP_P = 1e-6  # OpenAI takes 0, for the most probable token alone
_NO_DRAFT = DraftOutput(0, "", (), (), LOGPROB_FLOOR, (), "length", ())


def generation_params(body: CompletionRequest, service: Service) -> GenerationParams:
    """What to decode for each prompt of a request, whose strategy is settled.

    Raises:
        InvalidRequestError: fields of the request contradict each other, or one is over a limit of this server.
    """
    _check(body, service.settings.max_batch_prompts)
    with errors_in_request_terms(body):
        return GenerationParams(
            num_drafts=body.num_drafts,
            max_tokens=_max_tokens(body, service),
            **_drafting(body, service.drafting),
            stop=body.stop,
            verify_top=body.logprobs,
            num_verified=body.n,
            echo_logprobs=body.echo and body.logprobs is not None,
            strategy=body.strategy,
            temperature=body.temperature,
            top_p=max(body.top_p, MIN_TOP_P),
            seed=body.seed,
            logit_bias=bias_pairs(body.logit_bias),
            frequency_penalty=body.frequency_penalty,
            presence_penalty=body.presence_penalty,
            token_healing=_heals(body, service.settings.token_healing),
            single_line=body.single_line,
            snapshots=_streams_early(body),
        )


def _streams_early(body: CompletionRequest) -> bool:
    """Whether text goes out before a draft is finished.

    Exact log-probabilities come last, with the text; and only at its end a draft can tell whether it has begun to
    repeat the text after the gap.
    """
    return body.stream and body.logprobs is None and not body.suffix


@contextmanager
def errors_in_request_terms(body: CompletionRequest) -> Iterator[None]:
    """Let an error of the engine name the request's field: its rows and drafts are `best_of`, or else `n`."""
    try:
        yield
    except InvalidRequestError as error:
        if error.param not in ("num_drafts", "num_branches"):
            raise
        field = "n" if body.best_of is None else "best_of"
        raise InvalidRequestError(str(error).replace(error.param, field), param=field) from None


def _drafting(body: CompletionRequest, drafting: DraftingDefaults) -> dict[str, Any]:
    filled = drafting.fill(
        strategy=body.strategy,
        num_drafts=body.num_drafts,
        max_tokens=body.max_tokens,
        selection=body.selection,
        max_branches=body.max_branches,
        min_probability=body.min_probability,
    )
    if body.frequency_penalty or body.presence_penalty:
        # One candidate for one draft would leave a penalty nothing to choose from.
        filled["candidates_per_draft"] = max(body.num_drafts**2, MIN_PENALISED_CANDIDATES)
    return filled


def _heals(body: CompletionRequest, default: bool) -> bool:
    """Whether drafts go on from the typed text, and not from its tokens. Nothing else of the request has a say."""
    return isinstance(body.prompt[0], str) and (default if body.token_healing is None else body.token_healing)


def _check(body: CompletionRequest, max_prompts: int) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError("stream_options is allowed only with stream.", param="stream_options")
    if body.num_drafts < body.n:
        message = f"best_of must be n or more (n is {body.n}), got {body.best_of}."
        raise InvalidRequestError(message, param="best_of")
    if len(body.prompt) > max_prompts:
        message = f"prompt holds {len(body.prompt)} prompts, and one request takes {max_prompts} at most; send several."
        raise InvalidRequestError(message, param="prompt")


def _max_tokens(body: CompletionRequest, service: Service) -> int:
    """Editors ask for thousands of tokens and read one line: they get what there is room for, not an error."""
    engine = service.engine.engine
    limit = engine.config.max_tokens
    return body.max_tokens if body.max_tokens <= limit else min(limit, engine.max_model_len // 2)


def request_warnings(body: CompletionRequest, service: Service) -> list[str]:
    """What in the request has no effect."""
    warnings = strategy_warnings(body)
    limit = service.engine.engine.config.max_tokens
    if body.max_tokens > limit:
        warnings.append(f"max_tokens is {body.max_tokens}; this server writes {limit} at most.")
    if body.token_healing and not isinstance(body.prompt[0], str):
        warnings.append("token_healing has no effect: the prompt is given as token ids.")
    return warnings


def add_warnings(warnings: list[str], output: GenerationOutput) -> None:
    """Add the engine's warnings of one prompt, those that other prompts had too but once."""
    warnings += [warning for warning in output.warnings if warning not in warnings]


def choices_of(body: CompletionRequest, prompt_index: int, prompt_text: str, output: GenerationOutput) -> list[Choice]:
    """The shown drafts of one prompt, at least one: of no drafts, an empty one.

    Args:
        body: the request.
        prompt_index: which of the request's prompts.
        prompt_text: what `echo` puts in front of each; empty without `echo`.
        output: the engine's answer for this prompt.
    """
    choices = []
    for draft in output.drafts[: body.n] or (_NO_DRAFT,):
        text = prompt_text + draft.text
        logprobs = None
        if body.logprobs is not None:
            logprobs = legacy_logprobs(text, [*(output.prompt_logprobs or ()), *(draft.exact_logprobs or ())])
        choices.append(
            Choice(
                index=prompt_index * body.n + draft.index,
                text=text,
                logprobs=logprobs,
                finish_reason=openai_finish_reason(draft),
                score=floored(draft.score),
            )
        )
    return choices


def openai_finish_reason(draft: DraftOutput) -> Literal["stop", "length"]:
    """Why a draft ended, in the words that clients of OpenAI's wire know.

    A draft that ended because going on was improbable has ended by the server's own choice, with tokens left: "stop".
    """
    return "length" if draft.finish_reason == "length" else "stop"


def legacy_logprobs(text: str, tokens: Sequence[TokenLogprob]) -> Logprobs:
    """OpenAI's legacy shape: four parallel lists, one entry a token that has a part in `text`.

    A token that holds a part of a character shows as U+FFFD and is placed where its character starts; one that has no
    part in the text, such as the token that begins a text, takes no room. Tokens after the cut of a stop string are
    left out.
    """
    shown = Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    position, unplaced = 0, 0  # unplaced: tokens since the last whole one, of one character at most each
    for token in tokens:
        width = 0
        if "\ufffd" in token.text:
            unplaced += 1
        else:
            start, width = _place(token.text, text, position, unplaced)
            position, unplaced = max(position, start), 0
        if position >= len(text):
            break
        shown.tokens.append(token.text)
        shown.token_logprobs.append(None if token.logprob is None else floored(token.logprob))
        shown.top_logprobs.append(_top(token))
        shown.text_offset.append(position)
        position += width
    return shown


def _place(token: str, text: str, position: int, slack: int) -> tuple[int, int]:
    """Where a token stands in `text`, at most `slack` characters behind `position`, and its width.

    The end of the token may have been cut off with the text.
    """
    for start in range(position, min(position + slack + 1, len(text))):
        if token.startswith(text[start : start + len(token)]):
            return start, len(token)
    if position == 0 and token.startswith(" "):  # SentencePiece puts a space before a text
        return _place(token[1:], text, position, slack)
    return (len(text) if slack else position), 0


def _top(token: TokenLogprob) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    top: dict[str, float] = {}
    for _, text, logprob in token.top:
        top.setdefault(text, floored(logprob))  # two byte tokens may have one text: keep the likelier
    top.setdefault(token.text, floored(token.logprob))
    return top


def floored(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, LOGPROB_FLOOR) if math.isfinite(logprob) else LOGPROB_FLOOR


def usage_of(outputs: Sequence[GenerationOutput], num_shown: int) -> CompletionUsage:
    """Tokens of all prompts, and of the `num_shown` best drafts of each."""
    prompt_tokens = sum(output.usage.prompt_tokens for output in outputs)
    completion_tokens = sum(len(draft.token_ids) for output in outputs for draft in output.drafts[:num_shown])
    cached_tokens = sum(output.usage.cached_tokens for output in outputs)
    return CompletionUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens),
        forward_rows=sum(output.usage.forward_rows for output in outputs),
    )
