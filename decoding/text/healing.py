"""Token healing: drafts follow the model's distribution over continuations of the typed *text*, not of its tokens.

A prompt is a text cut at an arbitrary place, so the tokens at its end are often not those of the finished text. Let B
be the typed bytes. A *cover* is a token sequence whose last token extends beyond B and whose other tokens lie inside B.
Its weight is the plain product of the model's probabilities. The sum over all covers is P(text begins with B), and a
continuation's probability is its covers' share of that sum (Phan et al., 2024, arXiv 2410.09303). There is no
renormalisation at each token, so a tokenisation that the model finds absurd keeps its tiny weight.

Only *canonical* covers count: sequences that the tokenizer itself produces for their text. Models are trained on no
others.

Terms:

- *shared tokens*: the prompt's tokens before its last, unfinished piece. Every cover begins with them.
- *stem*: a cover without its last token. Most stems end where one of the prompt's own tokens ends, so the prompt's
  single pass gives their distributions. Any other stem needs its own row, and is run only if its weight may matter.
- *rest*: the typed bytes after a stem, with which the next token has to begin.
- *opening*: the last token of a cover, which is the first of a draft. Its bytes after the rest are the draft's own.

Everything works on bytes, because a token may be part of a character.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.decoding.text.typos import Corrections, TypedWord

MAX_TAIL_TOKENS = 8
MAX_TAIL_BYTES = 32
_MIN_WINDOW_TOKENS, _MAX_WINDOW_TOKENS = 2, 8
"""Tokens before the tail with which the tokenizer is asked, unless it splits texts into pieces first: what stands
before a piece then changes nothing."""
_MAX_PIECE_CHARS = 128
_LAST_BYTE = b"\xff"
"""Follows every other byte and is in no text."""

_PROBES = ("x", "0", ".", "\n")
"""One character of each kind before which tokenizers may split white space differently."""


@dataclass(frozen=True, slots=True)
class HealingPlan:
    """The end of a prompt, where its covers differ.

    Attributes:
        num_shared: tokens of the prompt that every cover begins with, at least one.
        tail: the prompt's other tokens, at least one.
        window: the last few shared tokens, enough for the text of `window` and `tail` to be tokenised as in the prompt.
        is_checked: whether it is tokenised like this, so that the tokenizer can decide which covers are canonical.
        word: the tail, if it is a word that may be a typo.
    """

    num_shared: int
    tail: tuple[int, ...]
    window: tuple[int, ...]
    is_checked: bool
    word: TypedWord | None = None


def plan_healing(
    text: str, token_ids: Sequence[int], num_fixed: int, tokenizer: Tokenizer, word: TypedWord | None = None
) -> HealingPlan | None:
    """Divide a prompt's tokens into shared tokens and the tail that covers may replace.

    The tail consists of the tokens that overlap the last piece of `text` (`Tokenizer.last_piece_start`), at most
    `MAX_TAIL_TOKENS` of them and at most `MAX_TAIL_BYTES`, unless the last token alone is longer.

    Args:
        text: the prompt's text, or the end of it, without lone surrogates.
        token_ids: the prompt's tokens; the oldest may be missing.
        num_fixed: how many of the first tokens must not be changed; at least one.
        tokenizer: the tokenizer.
        word: the word at the end of `text`, if it may be a typo. The tail then reaches back to its beginning, unless it
            is finished and a token of its own, that is, a known word.

    Returns:
        The plan; None if nothing can be healed: the text is empty or ends in a special token, or its bytes differ from
        those of the tokens (a tokenizer that normalises).
    """
    ending = text[-_MAX_PIECE_CHARS:]
    piece_bytes = len(ending[tokenizer.last_piece_start(ending) :].encode()) if ending else 0
    if word is not None and word.is_finished:
        token_bytes = [tokenizer.token_bytes[i] for i in token_ids[num_fixed:][-2:]]
        if len(token_bytes) < 2 or token_bytes[0].strip() == word.text.encode():
            word = None
        else:
            piece_bytes = max(piece_bytes, len(word.typed.encode()))
    last_tokens = [tokenizer.token_bytes[i] for i in token_ids[num_fixed:][-MAX_TAIL_TOKENS:]]
    num_shared = len(token_ids) - _num_tail_tokens(last_tokens, piece_bytes)
    tail = tuple(token_ids[num_shared:])
    typed = tokenizer.bytes_of(tail)
    # SentencePiece puts a space before a text, so the tokens of a short prompt may have one more byte than the text.
    if not tail or not (text.encode().endswith(typed) or typed == b" " + text.encode()):
        return None
    nums = range(_MIN_WINDOW_TOKENS, _MAX_WINDOW_TOKENS + 1)
    for num_window in (0, *nums) if tokenizer.splits_texts and len(typed) == piece_bytes else nums:
        window = tuple(token_ids[max(num_fixed, num_shared - num_window) : num_shared])
        if _is_canonical_alone((*window, *tail), tokenizer):
            own_word = word if word is not None and word.typed.encode() == typed else None
            return HealingPlan(num_shared, tail, window, is_checked=True, word=own_word)
    return HealingPlan(num_shared, tail, (), is_checked=False)


def _num_tail_tokens(last_tokens: Sequence[bytes], piece_bytes: int) -> int:
    """How many of the last tokens overlap the last `piece_bytes` bytes, within the limits of a tail."""
    num_tokens = num_bytes = 0
    # A token without bytes is special and not part of the text.
    for token in takewhile(len, reversed(last_tokens)):
        is_too_long = num_tokens > 0 and num_bytes + len(token) > MAX_TAIL_BYTES
        if num_bytes >= piece_bytes or is_too_long:
            break
        num_tokens += 1
        num_bytes += len(token)
    return num_tokens


def _is_canonical_alone(token_ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    try:
        text = tokenizer.bytes_of(token_ids).decode()
    except UnicodeDecodeError:
        return False
    return tokenizer.encode_inside(text) == list(token_ids)


class CanonicalCheck:
    """Decides which token sequences are canonical, that is, what the tokenizer itself produces for their text.

    A sequence that ends inside a character is judged by its tokens before that character, because the other tokens do
    not form a text yet.

    Args:
        plan: the prompt's end.
        tokenizer: the tokenizer.
    """

    def __init__(self, plan: HealingPlan, tokenizer: Tokenizer) -> None:
        self._plan = plan
        self._tokenizer = tokenizer

    def __call__(self, path: Sequence[int], token_ids: Sequence[int]) -> list[bool]:
        """For each token, whether `path` (tokens after the shared ones) followed by this token is canonical."""
        if not self._plan.is_checked:
            return [True] * len(token_ids)
        front = [*self._plan.window, *path]
        front_bytes, token_bytes = self._tokenizer.bytes_of(front), self._tokenizer.token_bytes
        verdicts = [True] * len(token_ids)
        texts, wanted, indices = [], [], []
        for index, token_id in enumerate(token_ids):
            try:
                text, whole = (front_bytes + token_bytes[token_id]).decode(), [*front, token_id]
            except UnicodeDecodeError:
                kept = self._before_broken_character([*front, token_id])
                if kept is None:
                    verdicts[index] = False
                    continue
                text, whole = self._tokenizer.bytes_of(kept).decode(), kept
            texts.append(text)
            wanted.append(whole)
            indices.append(index)
        for index, whole, encoded in zip(indices, wanted, self._tokenizer.encode_all_inside(texts), strict=True):
            verdicts[index] = encoded == whole
        return verdicts

    def may_begin(self, path: Sequence[int]) -> bool:
        """Whether a sequence may be the beginning of a longer canonical one.

        Normally it is canonical itself. However, tokenizers split a run of white space differently at the end of a text
        and before a word or a digit.
        """
        if self(path[:-1], path[-1:])[0]:
            return True
        if not self._tokenizer.token_bytes[path[-1]][-1:].isspace():
            return False
        token_ids = [*self._plan.window, *path]
        text = self._tokenizer.bytes_of(token_ids).decode(errors="replace")
        longer = self._tokenizer.encode_all_inside([text + probe for probe in _PROBES])
        return any(encoded[: len(token_ids)] == token_ids for encoded in longer)

    def _before_broken_character(self, token_ids: list[int]) -> list[int] | None:
        """The tokens before an unfinished character at the end; None if the bytes are not valid text otherwise."""
        data = self._tokenizer.bytes_of(token_ids)
        try:
            data.decode()
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                return None
            num_bytes = len(data)
            while num_bytes > error.start:
                num_bytes -= len(self._tokenizer.token_bytes[token_ids.pop()])
            return self._before_broken_character(token_ids)
        return token_ids


class TokenIndex:
    """Index of tokens by their first bytes. Built once per tokenizer.

    Args:
        token_bytes: the bytes of every token id.
        excluded_ids: ids to leave out because no draft may contain them as text: special tokens and ends of text.
    """

    def __init__(self, token_bytes: Sequence[bytes], excluded_ids: Collection[int]) -> None:
        excluded = frozenset(excluded_ids)
        ids = [i for i, token in enumerate(token_bytes) if token and i not in excluded]
        ids.sort(key=token_bytes.__getitem__)
        self._tokens = [token_bytes[i] for i in ids]
        self._ids: NDArray[np.int64] = np.array(ids, dtype=np.int64)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "TokenIndex":
        """The index of the tokens that a draft may contain as text."""
        return cls(tokenizer.token_bytes, {*tokenizer.suppressed_token_ids, *tokenizer.eos_token_ids})

    def beyond(self, rest: bytes) -> NDArray[np.int64]:
        """Ids of the tokens that begin with `rest` and are longer, shape [N]."""
        first = bisect_right(self._tokens, rest)
        last = bisect_right(self._tokens, rest, lo=first, key=lambda token: token[: len(rest)])
        return self._ids[first:last]

    def meant(self, stem: bytes, fixes: Corrections) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens that may have been meant instead of the bytes that were typed after a stem, and ln P(typed | meant).

        Args:
            stem: the bytes of its tokens.
            fixes: what may have been meant.

        Returns:
            Ids and log-probabilities, both of shape [N]. A token reaches the end of what may have been meant; of a
            finished word it is the rest.
        """
        logprobs = np.full(len(self._ids), -np.inf, dtype=np.float32)
        for meant, logprob in fixes.meant.items():
            rest = meant[len(stem) :]
            if rest and meant.startswith(stem):
                first = bisect_left(self._tokens, rest)
                last = bisect_right(self._tokens, rest if fixes.is_finished else rest + _LAST_BYTE, lo=first)
                if first < last:
                    np.maximum(logprobs[first:last], logprob, out=logprobs[first:last])
        rest = fixes.typed[len(stem) :]
        if fixes.typed.startswith(stem) and not fixes.is_finished:  # nor what was typed, nor its beginning
            spans = [(rest[:length], rest[:length]) for length in range(1, len(rest))] + [(rest, rest + _LAST_BYTE)]
            for first_token, last_token in spans:
                first = bisect_left(self._tokens, first_token)
                logprobs[first : bisect_right(self._tokens, last_token, lo=first)] = -np.inf
        found = np.flatnonzero(logprobs > -np.inf)
        return self._ids[found], logprobs[found]

    def inside(self, rest: bytes) -> list[int]:
        """Ids of the tokens that `rest` begins with, including tokens equal to `rest`."""
        return [i for length in range(1, len(rest) + 1) for i in self._equal_to(rest[:length]).tolist()]

    def _equal_to(self, token: bytes) -> NDArray[np.int64]:
        """Ids of the tokens with these bytes. SentencePiece may have two, a byte token and an equal piece."""
        first = bisect_left(self._tokens, token)
        return self._ids[first : bisect_right(self._tokens, token, lo=first)]
