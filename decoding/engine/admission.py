"""Admission: from a request to a sequence. Limits, the prompt's tokens, token healing, the room in the context."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.sequence import Branch, Sequence
from superdraft.decoding.errors import InvalidRequestError, PromptTooLongError
from superdraft.decoding.method.draft_set import Draft, DraftSet, TokenAppender
from superdraft.decoding.method.penalties import check_logit_bias
from superdraft.decoding.method.sampling import make_generator
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.prompt import PlainText, PrefixedText, Prompt, PromptTokens
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.healing import plan_healing
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.decoding.text.typos import last_word

_NOT_ROUND = (
    "The tokenizer changes the end of this text, so the drafts follow its tokens, not its exact characters: token "
    "healing has no effect."
)


@dataclass(frozen=True, slots=True)
class Admission:
    """Turns requests into sequences.

    Attributes:
        tokenizer: the model's tokenizer.
        config: the engine's limits.
        max_model_len: the most tokens of a prompt and a draft together.
        num_slots: KV-cache slots.
        num_needed: of a number of prompt tokens, rows and tokens per draft, the slots that the request needs.
    """

    tokenizer: Tokenizer
    config: EngineConfig
    max_model_len: int
    num_slots: int
    num_needed: Callable[[int, int, int], int]

    def __post_init__(self) -> None:
        # Prepares the tokenizer, which would delay the first request. Later it does not change, so that threads may
        # share it.
        self.tokenizer.encode("")
        self.tokenizer.encode_document("")

    def prepare(self, request: EngineRequest) -> EngineRequest:
        """Check a request and encode its prompt. Any thread may call this; `admit` does, unless it has been done.

        Returns:
            The request, with `PromptTokens`.

        Raises:
            InvalidRequestError: the prompt or a parameter is outside the limits.
        """
        prompt, params, tokenizer = request.prompt, request.params, self.tokenizer
        if isinstance(prompt, PromptTokens):
            return request
        self._check_limits(params)
        check_logit_bias(params.logit_bias, tokenizer.vocab_size)
        min_tokens = self.max_model_len - params.max_tokens + 1
        tokens = tokenise(prompt, tokenizer, document_start=self.config.document_start, min_tokens=min_tokens)
        return replace(request, prompt=tokens)

    def admit(self, request: EngineRequest) -> Sequence:
        """Make a sequence with its first branch, ready to be scheduled.

        Raises:
            InvalidRequestError: the prompt or a parameter is outside the limits.
            PromptTooLongError: prompt and drafts do not fit in the context.
        """
        request = self.prepare(request)
        tokens, params, tokenizer = request.prompt, request.params, self.tokenizer
        assert isinstance(tokens, PromptTokens)
        tokens, warnings = fit_to_context(tokens, params.max_tokens, self.max_model_len, self.config.prompt_too_long)
        self._check_room(len(tokens.token_ids), params)
        healing = None
        if params.token_healing and tokens.text and params.max_tokens > 0:
            word = last_word(tokens.text) if params.corrections else None
            healing = plan_healing(tokens.text, tokens.token_ids, max(1, tokens.num_fixed), tokenizer, word)
            if healing is None and tokenizer.token_bytes[tokens.token_ids[-1]] and len(tokens.token_ids) > 1:
                warnings.append(_NOT_ROUND)
        stop = (*params.stop, "\n", "\r") if params.single_line else params.stop
        sequence = Sequence(
            request,
            list(tokens.token_ids),
            scorer=request.scorer if params.uses_ngrams else None,
            extend=TokenAppender(tokenizer.token_bytes, tokenizer.eos_token_ids, tuple(one.encode() for one in stop)),
            max_positions=self.max_model_len,
            num_start_tokens=tokens.num_start,
            healing=healing,
            warnings=warnings,
        )
        scorer = sequence.scorer
        root = Draft(ngram_state=scorer.initial_state(tokens.token_ids) if scorer is not None else None)
        sequence.branches.append(Branch(sequence, DraftSet((root,)), make_generator(params.seed, 0)))
        return sequence

    def _check_limits(self, params: GenerationParams) -> None:
        config = self.config
        rows = "num_branches" if params.samples else "max_branches"
        limits = (
            ("num_drafts", params.num_drafts, config.max_num_drafts),
            (rows, params.num_rows, config.max_num_rows),
            ("candidates_per_draft", params.num_candidates, config.max_candidates_per_draft),
            ("max_tokens", params.max_tokens, min(config.max_tokens, self.max_model_len - 1)),
        )
        for name, value, limit in limits:
            if value > limit:
                raise InvalidRequestError(
                    f"{name} is {value}, this server allows at most {limit}. Lower it.", param=name
                )

    def _check_room(self, num_prompt_tokens: int, params: GenerationParams) -> None:
        """Refuse a request whose drafts would need more than all slots."""
        num_needed = self.num_needed(num_prompt_tokens, params.num_rows, params.max_tokens)
        if num_needed > self.num_slots:
            name = "num_branches" if params.samples else "max_branches"
            raise InvalidRequestError(
                f"{params.num_rows} rows of {params.max_tokens} tokens after a prompt of {num_prompt_tokens} tokens "
                f"need {num_needed} KV-cache slots, this server has {self.num_slots}. Lower {name} or max_tokens.",
                param=name,
            )


def tokenise(
    prompt: Prompt, tokenizer: Tokenizer, *, document_start: bool = True, min_tokens: int | None = None
) -> PromptTokens:
    """Turn a prompt into token ids.

    Args:
        prompt: a text, token ids (which stay unchanged), or both. Names of special tokens in a text become these, but
            not in a `PlainText`.
        tokenizer: the model's tokenizer.
        document_start: put the token that begins a document in front of a text, unless the text begins with a special
            token.
        min_tokens: of a text with more tokens, only the fixed tokens and at least this many of the last ones need be
            returned, which saves encoding a long text. None: all.

    Raises:
        InvalidRequestError: the text is not valid Unicode, an id is outside the vocabulary, or the prompt is empty and
            the model has no token that begins a document.
    """
    if isinstance(prompt, PrefixedText):
        _check_unicode(prompt.text)
        fixed = tuple(_checked(prompt.token_ids, tokenizer))
        is_document = fixed == (tokenizer.start_token_id,)  # plain text without control tokens
        end = None if min_tokens is None else tokenizer.encode_end(prompt.text, min_tokens, is_plain=True)
        encode = tokenizer.encode_document if is_document else tokenizer.encode_inside
        own = encode(prompt.text) if end is None else end[1]
        return PromptTokens((*fixed, *own), int(is_document), len(fixed), prompt.text, end is None)
    start = () if tokenizer.start_token_id is None else (tokenizer.start_token_id,)
    if not isinstance(prompt, str):
        token_ids = tuple(_checked(prompt, tokenizer))
        return PromptTokens(token_ids) if token_ids else _start_alone(start)
    _check_unicode(prompt)
    is_plain = isinstance(prompt, PlainText)
    end = None if min_tokens is None else tokenizer.encode_end(prompt, min_tokens, is_plain=is_plain)
    if is_plain:
        special = tokenizer.encode("")
        own = tokenizer.encode_document(prompt) if end is None else end[1]
        token_ids, num_special = (*special, *own), len(special)
    elif end is None:
        token_ids = tuple(tokenizer.encode(prompt))
        num_special = len(list(takewhile(lambda token_id: not tokenizer.token_bytes[token_id], token_ids)))
    else:
        token_ids, num_special = (*end[0], *end[1]), len(end[0])
    if not token_ids:
        return _start_alone(start)
    if num_special:
        return PromptTokens(token_ids, 0, num_special, prompt, end is None)
    front = start if document_start else ()
    return PromptTokens((*front, *token_ids), len(front), len(front), prompt, end is None)


def prompt_token_ids(prompt: Prompt, tokenizer: Tokenizer, *, document_start: bool = True) -> list[int]:
    """The token ids of a prompt, at least one. Arguments and errors as in `tokenise`."""
    return list(tokenise(prompt, tokenizer, document_start=document_start).token_ids)


def _start_alone(start: tuple[int, ...]) -> PromptTokens:
    if not start:
        raise InvalidRequestError(
            "prompt is empty and this model has no token that begins a text. Send at least one token.", param="prompt"
        )
    return PromptTokens(start, 1, 1)


def _checked(token_ids: Seq[int], tokenizer: Tokenizer) -> Seq[int]:
    size = tokenizer.vocab_size
    wrong = next((i for i, token_id in enumerate(token_ids) if not 0 <= token_id < size), None)
    if wrong is not None:
        raise InvalidRequestError(
            f"prompt[{wrong}] is {token_ids[wrong]}, but token ids of this model go from 0 to {size - 1}.",
            param="prompt",
        )
    return token_ids


def _check_unicode(text: str) -> None:
    """Raise InvalidRequestError if `text` has lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"prompt has a lone surrogate at character {error.start}, so it is not valid Unicode. Send valid UTF-8.",
            param="prompt",
        ) from None


def fit_to_context(
    tokens: PromptTokens, max_tokens: int, max_model_len: int, if_too_long: Literal["error", "truncate_left"]
) -> tuple[PromptTokens, list[str]]:
    """Shorten a prompt that leaves no room for `max_tokens`, if the settings allow it.

    A text loses its own first tokens. It keeps the tokens in front of it, because the model's attention relies on them.

    Args:
        tokens: the prompt.
        max_tokens: new tokens per draft.
        max_model_len: the most tokens of a prompt and a draft together.
        if_too_long: "error" refuses the prompt, "truncate_left" shortens it.

    Returns:
        The prompt, and warnings for the caller.

    Raises:
        PromptTooLongError: the prompt does not fit and must not be shortened.
    """
    room = max_model_len - max_tokens
    num_own = len(tokens.token_ids) - tokens.num_start
    if len(tokens.token_ids) <= room:
        return tokens, []
    if num_own <= room:  # fits without the token that was put in front
        own = tokens.token_ids[tokens.num_start :]
        return replace(tokens, token_ids=own, num_start=0, num_fixed=tokens.num_fixed - tokens.num_start), []
    if if_too_long == "error":
        raise _too_long(num_own, max_tokens, max_model_len, is_exact=tokens.is_whole)
    num_front = tokens.num_fixed if tokens.num_fixed < room and isinstance(tokens.text, str) else 0
    excess = len(tokens.token_ids) - room
    kept = tokens.token_ids[:num_front] + tokens.token_ids[num_front + excess :]
    num_start = min(tokens.num_start, num_front)
    omitted = f"first {num_own - (len(kept) - num_start)} tokens" if tokens.is_whole else "beginning"
    were = "were" if tokens.is_whole else "was"
    return replace(tokens, token_ids=kept, num_start=num_start, num_fixed=num_front), [
        f"The {omitted} of the prompt {were} left out: only {room} tokens fit beside max_tokens."
    ]


def _too_long(num_tokens: int, max_tokens: int, max_model_len: int, *, is_exact: bool) -> PromptTooLongError:
    at_least = "" if is_exact else "at least "
    excess = num_tokens + max_tokens - max_model_len
    return PromptTooLongError(
        f"The prompt has {at_least}{num_tokens} tokens and max_tokens is {max_tokens}; together they may have at most "
        f"{max_model_len}. Shorten the prompt by {at_least}{excess} tokens or lower max_tokens."
    )
