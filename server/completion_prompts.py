"""What the engine is fed for the prompts of a completion: themselves, or with `suffix` the gap's two sides."""

import asyncio
from typing import cast

from superdraft.decoding.errors import InvalidRequestError, PromptTooLongError
from superdraft.decoding.fim import Budget, FimTokenizer, FimTokens, Gap, fim_prompt
from superdraft.decoding.prompt import Prompt
from superdraft.server.schemas_openai import CompletionRequest
from superdraft.server.service import Service

_TOO_LONG = "prompt and suffix are too long together with max_tokens"


async def engine_prompts(body: CompletionRequest, service: Service) -> tuple[list[Prompt], list[str]]:
    """The prompt of each run, and what to tell the caller of them.

    Raises:
        InvalidRequestError: there is a `suffix`, and no way to fill the gap before it.
    """
    if not body.suffix:
        return list(body.prompt), []
    fim = _fim_tokens(body, service)
    prompts: list[Prompt] = []
    engine = service.engine.engine
    tokenizer = cast(FimTokenizer, engine.tokenizer)
    budget = Budget(max(0, engine.max_model_len - body.max_tokens), 0)
    is_truncated = False
    for prefix in body.prompt:
        if not isinstance(prefix, str):
            raise InvalidRequestError("prompt must be text where there is a suffix, got token ids.", param="prompt")
        gap = Gap(prefix, body.suffix)
        filled = await asyncio.to_thread(fim_prompt, gap, fim, tokenizer, budget)
        prompts.append(filled.prompt)
        is_truncated |= filled.is_truncated
    if is_truncated and service.settings.prompt_too_long == "error":
        raise PromptTooLongError(f"{_TOO_LONG}; together they may have at most {engine.max_model_len} tokens.")
    return prompts, [f"{_TOO_LONG}: their far ends were left out."] if is_truncated else []


def _fim_tokens(body: CompletionRequest, service: Service) -> FimTokens:
    if service.fim is None:
        message = (
            "suffix is not supported by the served model, which has no tokens for filling gaps. Leave it out, serve a "
            "model that has them (Qwen2.5-Coder, StarCoder2, CodeGemma), or use /infill or /v1/fim/completions, which "
            "only keep drafts out of the text after the gap."
        )
        raise InvalidRequestError(message, param="suffix", code="unsupported_parameter")
    if body.echo and body.logprobs is not None:
        message = "suffix goes with echo or with logprobs, not with both: the model sees the suffix before the draft."
        raise InvalidRequestError(message, param="suffix")
    return service.fim


def echo_texts(body: CompletionRequest, service: Service) -> list[str]:
    """What goes in front of the drafts of each prompt; empty without `echo`."""
    decode = service.engine.engine.tokenizer.decode
    return ["" if not body.echo else prompt if isinstance(prompt, str) else decode(prompt) for prompt in body.prompt]
