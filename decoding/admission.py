"""How a request becomes a sequence: limits, the prompt's tokens, token healing, the room in the context."""

from typing import Any, Literal

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.draft_set import Draft, DraftSet
from superdraft.decoding.draft_text import TokenAppender
from superdraft.decoding.errors import InvalidRequestError, PromptTooLongError
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.penalties import check_logit_bias
from superdraft.decoding.prompt import Prompt, PrefixedText
from superdraft.decoding.sampling import make_generator
from superdraft.decoding.sequence import Branch, Sequence
from superdraft.decoding.token_healing import TokenIndex, keep_forced_tokens, plan_healing
from superdraft.decoding.tokenizer import Tokenizer


def admit(
    request_id: str,
    prompt: Prompt,
    params: GenerationParams,
    scorer: NgramScorer[Any] | None,
    tokenizer: Tokenizer,
    config: EngineConfig,
    max_model_len: int,
    num_slots: int,
    token_index: TokenIndex,
) -> Sequence:
    """A sequence, ready to be scheduled, with its first branch.

    Raises:
        InvalidRequestError: the prompt or a parameter is outside the limits.
    """
    check_limits(params, config, max_model_len, num_slots)
    check_logit_bias(params.logit_bias, tokenizer.vocab_size)
    token_ids = prompt_token_ids(prompt, tokenizer)
    token_ids, warnings = fit_to_context(token_ids, params.max_tokens, max_model_len, config.prompt_too_long)
    plan = None
    # Exact log-probabilities are those of the prompt's own tokens followed by the draft's: nothing may be taken back.
    if params.token_healing and isinstance(prompt, str) and params.verify_top is None and params.max_tokens > 0:
        plan = plan_healing(prompt, token_ids, tokenizer)
        plan = keep_forced_tokens(plan, tokenizer.token_bytes, token_index) if plan is not None else None
    kept, prefix = token_ids, b""
    healed: tuple[int, ...] = ()
    if plan is not None:
        kept, prefix = list(plan.token_ids), plan.prefix
        # A start token, which is not among the prompt's own, may stand for a prompt of which nothing was left.
        num_kept = len(kept) - (kept[0] != token_ids[0])
        healed = tuple(token_ids[num_kept:])
    stop = (*params.stop, "\n", "\r") if params.single_line else params.stop
    extend = TokenAppender(tokenizer.token_bytes, tokenizer.eos_token_ids, tuple(string.encode() for string in stop))
    if params.alpha == 0 or not params.strategy.endswith("superposed"):
        scorer = None
    sequence = Sequence(
        request_id,
        kept,
        params,
        scorer,
        extend,
        max_positions=max_model_len,
        healed_token_ids=healed,
        warnings=warnings,
    )
    root = Draft(ngram_state=scorer.initial_state(kept) if scorer is not None else None, healing=prefix)
    sequence.branches.append(Branch(sequence, DraftSet((root,)), make_generator(params.seed, 0)))
    return sequence


def check_limits(params: GenerationParams, config: EngineConfig, max_model_len: int, num_slots: int) -> None:
    """Compare a request with the engine's limits.

    Raises:
        InvalidRequestError: a value is above its limit.
    """
    limits = (
        ("num_drafts", params.num_drafts, config.max_num_drafts),
        ("num_branches" if params.strategy.startswith("sample") else "max_branches", params.num_rows, num_slots),
        ("candidates_per_draft", params.num_candidates, config.max_candidates_per_draft),
        ("max_tokens", params.max_tokens, min(config.max_tokens, max_model_len - 1)),
    )
    for name, value, limit in limits:
        if value > limit:
            raise InvalidRequestError(
                f"{name} is {value}, this server allows at most {limit}. Ask for less.", param=name
            )


def prompt_token_ids(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """The prompt as token ids, at least one: an empty prompt becomes the token that starts a text.

    Raises:
        InvalidRequestError: no valid Unicode, an id outside the vocabulary, or nothing to start with.
    """
    if isinstance(prompt, str):
        check_unicode(prompt)
        token_ids = tokenizer.encode(prompt)
    elif isinstance(prompt, PrefixedText):
        check_unicode(prompt.text)
        token_ids = [*prompt.token_ids, *tokenizer.encode_inside(prompt.text)]
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


def check_unicode(text: str) -> None:
    """Raise InvalidRequestError if `text` has lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"prompt has a lone surrogate at character {error.start}, which is no Unicode text. Send valid UTF-8.",
            param="prompt",
        ) from None


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
