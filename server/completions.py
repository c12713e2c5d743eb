"""The OpenAI wire's request as engine parameters, and the engine's outputs as its answer."""

import math
from collections.abc import Sequence

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.outputs import DraftOutput, GenerationOutput, TokenLogprob
from superdraft.decoding.params import GenerationParams
from superdraft.server.request_warnings import SAMPLING, strategy_warnings
from superdraft.server.schemas import bias_pairs
from superdraft.server.schemas_openai import (
    Choice,
    CompletionRequest,
    CompletionUsage,
    Logprobs,
    PromptTokensDetails,
)
from superdraft.server.service import Service

LOGPROB_FLOOR = -9999.0  # JSON has no -inf


def generation_params(body: CompletionRequest, service: Service) -> GenerationParams:
    """What to decode for each prompt of a request.

    Raises:
        InvalidRequestError: the request asks for what is not supported, or is over a limit of this server.
    """
    _refuse_unsupported(body)
    _check_drafts(body, service.engine.engine.config)
    if len(body.prompt) > service.settings.max_batch_prompts:
        limit = service.settings.max_batch_prompts
        message = f"prompt holds {len(body.prompt)} prompts, and one request takes {limit} at most; send several."
        raise InvalidRequestError(message, param="prompt")
    return GenerationParams(
        num_drafts=body.num_drafts,
        max_tokens=body.max_tokens,
        alpha=service.alpha,
        tau=service.tau,
        stop=body.stop,
        verify_top=body.logprobs,
        echo_logprobs=body.echo and body.logprobs is not None,
        strategy=body.strategy,
        temperature=body.temperature,
        top_p=body.top_p if body.strategy in SAMPLING else 1.0,  # OpenAI takes 0, and elsewhere it has no effect
        seed=body.seed,
        logit_bias=bias_pairs(body.logit_bias),
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        token_healing=_heals(body, service.settings.token_healing),
    )


def _heals(body: CompletionRequest, default: bool) -> bool:
    """Whether half typed words are finished.

    Not where the answer places tokens in the prompt's text or beside the draft's: the healed token covers both.
    """
    if body.echo or body.logprobs is not None or not isinstance(body.prompt[0], str):
        return False
    return default if body.token_healing is None else body.token_healing


def _refuse_unsupported(body: CompletionRequest) -> None:
    if body.stream:
        message = "stream is not supported yet; send the request without it."
        raise InvalidRequestError(message, param="stream", code="unsupported_parameter")
    if body.stream_options is not None:
        raise InvalidRequestError("stream_options is allowed only with stream.", param="stream_options")
    if body.suffix:
        message = "suffix is not supported: this model continues a text and fills no gap; send the prompt alone."
        raise InvalidRequestError(message, param="suffix", code="unsupported_parameter")


def _check_drafts(body: CompletionRequest, config: EngineConfig) -> None:
    for name, value in (("n", body.n), ("best_of", body.best_of or 1)):
        if value > config.max_num_drafts:
            message = f"{name} must be at most {config.max_num_drafts} on this server, got {value}."
            raise InvalidRequestError(message, param=name)
    if body.num_drafts < body.n:
        message = f"best_of must be n or more (n is {body.n}), got {body.best_of}."
        raise InvalidRequestError(message, param="best_of")


def request_warnings(body: CompletionRequest) -> list[str]:
    """What in the request has no effect."""
    warnings = strategy_warnings(body)
    if body.token_healing and (body.echo or body.logprobs is not None):
        warnings.append("token_healing has no effect with echo or logprobs.")
    elif body.token_healing and not isinstance(body.prompt[0], str):
        warnings.append("token_healing has no effect: the prompt is given as token ids.")
    return warnings


def choices_of(body: CompletionRequest, prompt_index: int, prompt_text: str, output: GenerationOutput) -> list[Choice]:
    """The shown drafts of one prompt.

    Args:
        body: the request.
        prompt_index: which of the request's prompts.
        prompt_text: the prompt's text; put in front if the request asks for `echo`, else not looked at.
        output: the engine's answer for this prompt.
    """
    choices = []
    for draft in output.drafts[: body.n]:
        text = prompt_text + draft.text if body.echo else draft.text
        logprobs = None
        if body.logprobs is not None:
            before = (output.prompt_logprobs or ()) if body.echo else ()
            logprobs = legacy_logprobs(text, [*before, *_exact_logprobs(draft)])
        index = prompt_index * body.n + draft.index
        choices.append(Choice(index=index, text=text, logprobs=logprobs, finish_reason=draft.finish_reason))
    return choices


def _exact_logprobs(draft: DraftOutput) -> tuple[TokenLogprob, ...]:
    return draft.exact_logprobs or ()


def legacy_logprobs(text: str, tokens: Sequence[TokenLogprob]) -> Logprobs:
    """OpenAI's legacy shape: four parallel lists, one entry a token that has a part in `text`.

    A token that holds a part of a character shows as U+FFFD and is placed where its character starts. Tokens after
    the cut of a stop string are left out.
    """
    shown = Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    position, unplaced = 0, 0  # unplaced: tokens since the last whole one, of one character at most each
    for token in tokens:
        if "\ufffd" in token.text:
            unplaced += 1
        else:
            end = position + unplaced + len(token.text)
            position = max(position, text.find(token.text, position, end))
            unplaced = 0
        if position >= len(text):
            break
        shown.tokens.append(token.text)
        shown.token_logprobs.append(None if token.logprob is None else floored(token.logprob))
        shown.top_logprobs.append(_top(token))
        shown.text_offset.append(position)
        if not unplaced:
            position += len(token.text)
    return shown


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
    )
