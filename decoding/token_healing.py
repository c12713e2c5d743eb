"""Token healing: a prompt that ends inside a word gets drafts that finish the word.

A model has learnt "improvements" as one or two certain tokens and hardly ever sees the tokens of "improv" followed by
"ements". So the prompt's last tokens are taken back, and each draft must first reproduce their bytes, in any
tokenisation: the *healing prefix*. The same goes for white space, which tokens carry in front of the next word.

All of it works on bytes, since a token may hold part of a character.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from superdraft.decoding.characters import last_word_start
from superdraft.decoding.tokenizer import Tokenizer

MAX_HEALED_TOKENS = 8
MAX_HEALED_BYTES = 32
_APOSTROPHES = "'\u2019"


@dataclass(frozen=True, slots=True)
class HealingPlan:
    """A prompt whose last tokens were taken back.

    Attributes:
        token_ids: the tokens that stay, at least one.
        prefix: bytes that every draft must reproduce before it adds anything of its own, never empty.
    """

    token_ids: tuple[int, ...]
    prefix: bytes


def plan_healing(text: str, token_ids: Sequence[int], tokenizer: Tokenizer) -> HealingPlan | None:
    """Which of the prompt's last tokens to take back.

    Those that overlap the last unfinished piece of `text`: a word and the space before it, or a run of white space, or
    else the last character. Never more than `MAX_HEALED_TOKENS`, nor than `MAX_HEALED_BYTES` unless the last token
    alone is longer; of a longer piece only the end is healed. If all tokens would go, the tokenizer's start token
    stands for the empty prompt, or without one the first token stays.

    Args:
        text: the prompt, without lone surrogates.
        token_ids: its tokens as `tokenizer.encode` gives them; the oldest may be missing.
        tokenizer: the tokenizer.

    Returns:
        The plan; the bytes of its tokens and its prefix together are the bytes of `token_ids`. None when nothing can
        be healed: no token to take back, a special token at the end, or tokens that do not end in the bytes of `text`
        (a tokenizer that normalises).
    """
    last_tokens = [tokenizer.token_bytes[i] for i in token_ids[-MAX_HEALED_TOKENS:]]
    num_kept = len(token_ids) - _num_tokens_to_take(last_tokens, text)
    kept, taken = token_ids[:num_kept], token_ids[num_kept:]
    if not kept:
        start = tokenizer.start_token_id
        kept, taken = (taken[:1], taken[1:]) if start is None else ([start], taken)
    prefix = b"".join(tokenizer.token_bytes[i] for i in taken)
    if not prefix or not _is_exact(prefix, text.encode()):
        return None
    return HealingPlan(tuple(kept), prefix)


def _num_tokens_to_take(last_tokens: Sequence[bytes], text: str) -> int:
    """How many of the last tokens overlap the unfinished piece of `text`, within the bounds."""
    piece_bytes = len(_unfinished_piece(text).encode())
    num_taken = num_bytes = 0
    # A token without bytes is special and no part of the text.
    for token in takewhile(len, reversed(last_tokens)):
        is_too_long = num_taken > 0 and num_bytes + len(token) > MAX_HEALED_BYTES
        if num_bytes >= piece_bytes or is_too_long:
            break
        num_taken += 1
        num_bytes += len(token)
    return num_taken


def _unfinished_piece(text: str) -> str:
    """The end of `text` that the next token might have been one token with."""
    # No character has less than one byte, so what is further back stays anyway.
    text = text[-MAX_HEALED_BYTES:]
    space_start = len(text.rstrip())
    if space_start < len(text):
        return text[space_start:]
    start = last_word_start(text, _APOSTROPHES)
    if start == len(text):
        return text[-1:]
    return text[start - 1 :] if text[:start].endswith(" ") else text[start:]


def _is_exact(prefix: bytes, text: bytes) -> bool:
    """Whether a draft that reproduces `prefix` goes on from the last byte of `text`.

    SentencePiece puts a space before a text, so the tokens of a short prompt may have one byte more than it has.
    """
    return text.endswith(prefix) or prefix == b" " + text


class TokenIndex:
    """Finds the tokens that fit a healing prefix. Built once for a tokenizer.

    Args:
        token_bytes: the bytes of every token id.
        excluded_ids: ids that no draft may contain as text: special tokens, ends of text.
    """

    def __init__(self, token_bytes: Sequence[bytes], excluded_ids: Collection[int]) -> None:
        excluded = frozenset(excluded_ids)
        table = sorted((token, i) for i, token in enumerate(token_bytes) if token and i not in excluded)
        self._tokens = [token for token, _ in table]
        self._ids: NDArray[np.int64] = np.array([i for _, i in table], dtype=np.int64)

    def matching(self, prefix: bytes) -> NDArray[np.int64]:
        """Ids of the tokens that agree with `prefix`, shape [number of them].

        A token agrees when it begins with the whole prefix, or when it is a part of it from the start, so that further
        tokens can complete it. An empty prefix agrees with every token.
        """
        first = bisect_left(self._tokens, prefix)
        last = bisect_right(self._tokens, prefix, lo=first, key=lambda token: token[: len(prefix)])
        parts = [self._equal_to(prefix[:length]) for length in range(1, len(prefix))]
        return np.concatenate([*parts, self._ids[first:last]])

    def _equal_to(self, token: bytes) -> NDArray[np.int64]:
        """Ids of `token`; several for SentencePiece, where a byte token may equal a piece."""
        first = bisect_left(self._tokens, token)
        return self._ids[first : bisect_right(self._tokens, token, lo=first)]


def keep_forced_tokens(plan: HealingPlan, token_bytes: Sequence[bytes], index: TokenIndex) -> HealingPlan | None:
    """The plan without the tokens that healing could only choose again, because nothing else agrees with the prefix.

    A tokenizer that makes a token of each digit would otherwise spend a decode step on each digit of a number.

    Returns:
        The shorter plan; None when nothing is left to heal.
    """
    token_ids, prefix = plan.token_ids, plan.prefix
    while prefix:
        matching = index.matching(prefix)
        if len(matching) != 1:
            return HealingPlan(token_ids, prefix)
        token = token_bytes[matching[0]]
        if len(token) > len(prefix):
            return HealingPlan(token_ids, prefix)
        token_ids = (*token_ids, int(matching[0]))
        prefix = remaining_after(prefix, token)
    return None


def remaining_after(prefix: bytes, token: bytes) -> bytes:
    """What of a healing prefix is still to be reproduced after a token that agrees with it."""
    return prefix[len(token) :]
