"""What the engine is fed for the prompts of a completion: themselves, or with `suffix` the gap's two sides."""

from superdraft.decoding.errors import InvalidRequestError, PromptTooLongError
from superdraft.decoding.prompt import Prompt
from superdraft.decoding.text.fim import Gap
from superdraft.server.service import Service
from superdraft.server.wires.editors import TOO_LONG, prepare_gap
from superdraft.server.wires.openai.schemas import CompletionRequest


async def engine_prompts(body: CompletionRequest, service: Service) -> tuple[list[Prompt], list[str]]:
    """The prompt of each run, and what to tell the caller of them.

    Raises:
        InvalidRequestError: there is a `suffix`, and a field that it does not go with.
        PromptTooLongError: the text around a gap does not fit, and the settings forbid to shorten it.
    """
    gaps = gaps_of(body)
    if not gaps:
        return list(body.prompt), []
    prompts: list[Prompt] = []
    warnings: list[str] = []
    for gap in gaps:
        prepared = await prepare_gap(service, gap, body.max_tokens)
        if prepared.is_truncated and service.settings.prompt_too_long == "error":
            limit = service.engine.engine.max_model_len
            raise PromptTooLongError(
                f"{TOO_LONG}; together they may have at most {limit} tokens. Send less text or lower max_tokens."
            )
        prompts.append(prepared.prompt)
        warnings += [warning for warning in prepared.warnings if warning not in warnings]
    return prompts, warnings


def gaps_of(body: CompletionRequest) -> list[Gap]:
    """The gap after each prompt; none without `suffix`.

    Raises:
        InvalidRequestError: a field of the request does not go with `suffix`.
    """
    if not body.suffix:
        return []
    if body.echo and body.logprobs is not None:
        message = "suffix goes with echo or with logprobs, not with both: the model sees the suffix before the draft."
        raise InvalidRequestError(message, param="suffix")
    gaps = []
    for prefix in body.prompt:
        if not isinstance(prefix, str):
            raise InvalidRequestError("prompt must be text where there is a suffix, got token ids.", param="prompt")
        gaps.append(Gap(prefix, body.suffix))
    return gaps


def echo_texts(body: CompletionRequest, service: Service) -> list[str]:
    """What goes in front of the drafts of each prompt; empty without `echo`."""
    decode = service.engine.engine.tokenizer.decode
    return ["" if not body.echo else prompt if isinstance(prompt, str) else decode(prompt) for prompt in body.prompt]
