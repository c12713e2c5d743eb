"""Engine prompts of a completion: the request's own, or with `suffix` the two sides of a gap."""

from fastapi import Request

from superdraft.decoding.errors import InvalidRequestError, PromptTooLongError
from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.prompt import Prompt
from superdraft.decoding.text.fim import Gap
from superdraft.decoding.text.gap_cut import cut_for_gap
from superdraft.server.service import Service
from superdraft.server.wires.common import engine_prompt
from superdraft.server.wires.editors import TOO_LONG, cut_at_gap, prepare_gap, with_cut_drafts
from superdraft.server.wires.openai.schemas import CompletionRequest


async def engine_prompts(body: CompletionRequest, request: Request, service: Service) -> tuple[list[Prompt], list[str]]:
    """The engine's prompt for each of the request's, and warnings about them.

    Raises:
        InvalidRequestError: there is a `suffix`, and a field that cannot be combined with it.
        ClientGoneError: the client left.
        PromptTooLongError: the text around a gap does not fit, and the settings do not allow it to be shortened.
    """
    gaps = gaps_of(body)
    if not gaps:
        special_tokens = service.settings.special_tokens if body.special_tokens is None else body.special_tokens
        return [engine_prompt(prompt, special_tokens=special_tokens) for prompt in body.prompt], []
    prompts: list[Prompt] = []
    warnings: list[str] = []
    for gap in gaps:
        prepared, own = await prepare_gap(request, service, gap, body.max_tokens)
        if prepared.is_truncated and service.settings.prompt_too_long == "error":
            limit = service.engine.max_model_len
            raise PromptTooLongError(
                f"{TOO_LONG}; together they may have at most {limit} tokens. Send less text or lower max_tokens."
            )
        prompts.append(prepared.prompt)
        warnings += [warning for warning in own if warning not in warnings]
    return prompts, warnings


def gaps_of(body: CompletionRequest) -> list[Gap]:
    """The gap after each prompt; none without `suffix`.

    Raises:
        InvalidRequestError: a field of the request cannot be combined with `suffix`.
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


def cut_drafts(body: CompletionRequest, gap: Gap, output: GenerationOutput) -> GenerationOutput:
    """The output with drafts that end where the text after the gap begins.

    Their line ends become those of the gap's text, unless log-probabilities give each token's place in the draft.
    """
    if not output.drafts:
        return output
    if body.logprobs is None:
        return cut_at_gap(output, gap)
    return with_cut_drafts(output, lambda text: cut_for_gap(text, gap))


def echo_texts(body: CompletionRequest, service: Service) -> list[str]:
    """The text before the drafts of each prompt, whose token ids the engine has checked; empty without `echo`."""
    decode = service.engine.tokenizer.decode
    return ["" if not body.echo else prompt if isinstance(prompt, str) else decode(prompt) for prompt in body.prompt]
