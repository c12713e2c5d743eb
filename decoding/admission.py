"""Checks of a request before it becomes a sequence: limits, the prompt's tokens, the room in the context."""

from collections.abc import Sequence
from typing import Literal

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.errors import InvalidRequestError, PromptTooLongError
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.tokenizer import Tokenizer


def check_limits(params: GenerationParams, config: EngineConfig, max_model_len: int) -> None:
    """Compare a request with the engine's limits.

    Raises:
        InvalidRequestError: a value is above its limit.
    """
    limits = (
        ("num_drafts", params.num_drafts, config.max_num_drafts),
        ("candidates_per_draft", params.num_candidates, config.max_candidates_per_draft),
        ("max_tokens", params.max_tokens, min(config.max_tokens, max_model_len - 1)),
    )
    for name, value, limit in limits:
        if value > limit:
            raise InvalidRequestError(
                f"{name} is {value}, this server allows at most {limit}. Ask for less.", param=name
            )


def prompt_token_ids(prompt: str | Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The prompt as token ids, at least one: an empty prompt becomes the token that starts a text.

    Raises:
        InvalidRequestError: no valid Unicode, an id outside the vocabulary, or nothing to start with.
    """
    if isinstance(prompt, str):
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"prompt has a lone surrogate at character {error.start}, which is no Unicode text. Send valid UTF-8.",
                param="prompt",
            ) from None
        token_ids = tokenizer.encode(prompt)
    else:
        token_ids = list(prompt)
        size = tokenizer.vocab_size
        wrong = next((i for i, token_id in enumerate(token_ids) if not 0 <= token_id < size), None)
        if wrong is not None:
            raise InvalidRequestError(
                f"prompt[{wrong}] is {token_ids[wrong]}, token ids of this model go from 0 to {size - 1}.",
                param="prompt",
            )
    if token_ids:
        return token_ids
    if tokenizer.start_token_id is None:
        raise InvalidRequestError(
            "prompt is empty and this model has no token to start a text with. Send at least one token.", param="prompt"
        )
    return [tokenizer.start_token_id]


def fit_to_context(
    token_ids: list[int], max_tokens: int, max_model_len: int, if_too_long: Literal["error", "truncate_left"]
) -> tuple[list[int], list[str]]:
    """The prompt, shortened to the room beside `max_tokens` if the settings allow that, and what to tell the caller.

    Raises:
        PromptTooLongError: it does not fit and may not be shortened.
    """
    room = max_model_len - max_tokens
    excess = len(token_ids) - room
    if excess <= 0:
        return token_ids, []
    if if_too_long == "error":
        raise PromptTooLongError(
            f"The prompt has {len(token_ids)} tokens and max_tokens is {max_tokens}; together they may have at most "
            f"{max_model_len}. Shorten the prompt by {excess} tokens or lower max_tokens."
        )
    return token_ids[excess:], [
        f"The first {excess} tokens of the prompt were left out: only {room} fit beside max_tokens."
    ]
