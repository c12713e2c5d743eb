"""Mapping of OpenAI's requests to the engine's, and of the engine's outputs to OpenAI's answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.outputs import DraftOutput, GenerationOutput, TokenLogprob
from superdraft.decoding.params import GenerationParams
from superdraft.server.bridge.async_engine import AsyncEngine
from superdraft.server.display import display_warnings
from superdraft.server.drafting import Asked
from superdraft.server.wires.common import NO_DRAFT, WITHHELD, PromptTokensDetails, floored
from superdraft.server.wires.openai.schemas import (
    Choice,
    CompletionRequest,
    CompletionUsage,
    Logprobs,
)

MAX_PROMPTS = 32  # of one request
MIN_PENALISED_CANDIDATES = 16
MIN_TOP_P = 1e-6  # OpenAI takes 0, for the most probable token alone


def asked(body: CompletionRequest, engine: AsyncEngine) -> Asked:
    """The engine parameters that a request sets."""
    own: dict[str, Any] = {}
    if body.frequency_penalty or body.presence_penalty:
        # With one candidate for one draft, a penalty would have nothing to choose from.
        own["candidates_per_draft"] = max(body.num_drafts**2, MIN_PENALISED_CANDIDATES)
    return body.asked(
        is_text=isinstance(body.prompt[0], str),
        num_drafts=body.num_drafts,
        max_tokens=_max_tokens(body, engine),
        top_p=max(body.top_p, MIN_TOP_P),
        verify_top=body.logprobs,
        num_verified=body.n,
        echo_logprobs=body.echo and body.logprobs is not None,
        snapshots=_streams_early(body),
        **own,
    )


def _streams_early(body: CompletionRequest) -> bool:
    """Whether text is sent before a draft is finished.

    Exact log-probabilities come last, together with the text. And whether a draft has begun to repeat the text after
    the gap, and whether it is probable enough to be shown, is known only at its end.
    """
    return body.stream and body.logprobs is None and not body.suffix and not body.min_probability_shown


def _max_tokens(body: CompletionRequest, engine: AsyncEngine) -> int:
    """Editors ask for thousands of tokens and use one line: they get what there is room for instead of an error."""
    limit = engine.config.max_tokens
    return body.max_tokens if body.max_tokens <= limit else min(limit, engine.max_model_len // 2)


@contextmanager
def errors_in_request_terms(body: CompletionRequest) -> Iterator[None]:
    """Let errors about rows and drafts name the request's field: `best_of` if it is set, else `n`."""
    try:
        yield
    except InvalidRequestError as error:
        if error.param not in ("num_drafts", "num_branches"):
            raise
        field = "n" if body.best_of is None else "best_of"
        raise InvalidRequestError(str(error).replace(error.param, field), param=field) from None


def check(body: CompletionRequest) -> None:
    """Check the fields that the engine does not know.

    Raises:
        InvalidRequestError: two fields contradict each other, or there are more than MAX_PROMPTS prompts.
    """
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError("stream_options is allowed only with stream.", param="stream_options")
    if body.num_drafts < body.n:
        message = f"best_of must be n or more (n is {body.n}), got {body.best_of}."
        raise InvalidRequestError(message, param="best_of")
    if len(body.prompt) > MAX_PROMPTS:
        message = f"prompt holds {len(body.prompt)} prompts, and one request takes {MAX_PROMPTS} at most; send several."
        raise InvalidRequestError(message, param="prompt")


def request_warnings(body: CompletionRequest, params: GenerationParams, limit: int) -> list[str]:
    """Warnings about fields of the request that have no effect.

    Args:
        body: the request.
        params: the engine's parameters that were made of it.
        limit: the server's for `max_tokens`.
    """
    warnings = [*body.strategy_warnings(params.strategy), *display_warnings(body.min_probability_shown, params)]
    if body.max_tokens > limit:
        warnings.append(
            f"max_tokens is {body.max_tokens}, this server allows at most {limit}: drafts end at {params.max_tokens}."
        )
    if body.token_healing and not isinstance(body.prompt[0], str):
        warnings.append("token_healing has no effect: the prompt is given as token ids.")
    return warnings


def add_warnings(warnings: list[str], output: GenerationOutput) -> None:
    """Add the engine's warnings about one prompt, without repeating those of other prompts."""
    warnings += [warning for warning in output.warnings if warning not in warnings]


def choices_of(body: CompletionRequest, prompt_index: int, prompt_text: str, output: GenerationOutput) -> list[Choice]:
    """The choices for one prompt; if there are no drafts, a single empty choice.

    Args:
        body: the request.
        prompt_index: index of the prompt in the request.
        prompt_text: text put before each draft; empty without `echo`.
        output: the engine's output for this prompt.
    """
    choices = []
    for draft in output.drafts[: body.n] or (WITHHELD if body.min_probability_shown else NO_DRAFT,):
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
                score=draft.score,
            )
        )
    return choices


def openai_finish_reason(draft: DraftOutput) -> Literal["stop", "length"]:
    """The finish reason, in the terms of OpenAI's wire.

    A draft that was cut for being improbable ended by the server's own choice, with tokens left: "stop".
    """
    return "length" if draft.finish_reason == "length" else "stop"


def legacy_logprobs(text: str, tokens: Sequence[TokenLogprob]) -> Logprobs:
    """Log-probabilities in OpenAI's legacy shape: four parallel lists with one entry per token.

    A token that holds part of a character shows as U+FFFD and is placed where its character starts. A token without
    text, such as the one that begins a text, has no width. Tokens after the place where a stop string cut the text are
    left out.
    """
    shown = Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    position, unplaced = 0, 0  # unplaced: tokens since the last whole one, each at most one character wide
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
    """Where a token starts in `text`, at most `slack` characters after `position`, and its width.

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
        top.setdefault(text, floored(logprob))  # two byte tokens may have the same text: keep the more likely
    top.setdefault(token.text, floored(token.logprob))
    return top


def usage_of(outputs: Sequence[GenerationOutput], num_shown: int) -> CompletionUsage:
    """Tokens of all prompts, and of the best `num_shown` drafts of each."""
    prompt_tokens = sum(output.usage.prompt_tokens for output in outputs)
    completion_tokens = sum(len(draft.token_ids) for output in outputs for draft in output.drafts[:num_shown])
    cached_tokens = sum(output.usage.cached_tokens for output in outputs)
    return CompletionUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens),
        forward_rows=sum(output.usage.forward_rows for output in outputs),
        limited_by_load=any(output.usage.limited_by_load for output in outputs),
    )
