"""Drafts, draft sets, and the children from which a step makes the next draft set (Shen et al., 2024).

Everything here is a pure value: a step takes a draft set and scores and returns a new draft set.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from superdraft.decoding.outputs import FinishReason
from superdraft.decoding.text.tokenizer import valid_utf8_prefix
from superdraft.decoding.text.trimming import trim_text

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Draft:
    """One draft: the tokens after the prompt.

    Attributes:
        token_ids: its tokens; an end-of-text token is not kept.
        text: the bytes that its tokens add to the prompt, cut before a stop string.
        logprob: its score, the sum of ln p_f over its tokens (eq. 6), end of text included.
        num_scored: how many terms that sum has.
        token_logprobs: ln p of each token in the step that chose it, at temperature 1, without the n-gram model.
        finish_reason: None while it is alive.
        ngram_state: the n-gram model's state after prompt and draft; belongs to this draft alone.
        path: the typed tokens in front of it that its row holds after those that all covers share (token healing).
        rest: of a draft without tokens: typed bytes that its first token must begin with and that are not its own.
        pieces: the bytes that each token adds.
        start: with the selection "distinct", its text when it began; empty before that.
    """

    token_ids: tuple[int, ...] = ()
    text: bytes = b""
    logprob: float = 0.0
    num_scored: int = 0
    token_logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    ngram_state: Hashable = None
    path: tuple[int, ...] = ()
    rest: bytes = b""
    pieces: tuple[bytes, ...] = ()
    start: bytes = b""

    @property
    def lm_logprob(self) -> float:
        """The language model's part of the score: ln of the probability of all its tokens, as chosen."""
        return math.fsum(self.token_logprobs)

    @property
    def has_word(self) -> bool:
        """Whether its first word is finished: something that is not part of a word follows."""
        return trim_text(valid_utf8_prefix(self.text), "length", single_line=False, trim="word") != ""

    @property
    def mean_logprob(self) -> float:
        """The length-normalised score: the mean of ln p_f over its tokens."""
        return self.logprob / max(self.num_scored, 1)


@dataclass(frozen=True, slots=True)
class DraftSet:
    """The drafts of one branch, which share one model row.

    Attributes:
        alive: drafts that still grow, best first; at the start one empty draft, the prompt itself.
        finished: drafts that ended, best first by `logprob`.
    """

    alive: tuple[Draft, ...] = (Draft(),)
    finished: tuple[Draft, ...] = ()

    @property
    def num_shown(self) -> int:
        """Drafts that are alive, or ended with some text."""
        return len(self.alive) + sum(bool(draft.text) for draft in self.finished)

    @property
    def is_done(self) -> bool:
        """No draft is left to grow."""
        return not self.alive


class Extend(Protocol):
    """Makes a child of a draft: its parent with one more token."""

    def __call__(self, draft: Draft, token_id: int, logprob: float, token_logprob: float) -> Draft:
        """The child.

        Args:
            draft: the parent.
            token_id: the token.
            logprob: the child's score.
            token_logprob: ln p of the token under the language model.
        """


@dataclass(frozen=True, slots=True)
class TokenAppender:
    """The `Extend` of a request: applies its end-of-text tokens and stop strings.

    The child keeps its parent's n-gram state: that is advanced for the children that are selected, and for no others.

    Attributes:
        token_bytes: the bytes of every token id.
        eos_token_ids: tokens that end a text; they add nothing to it.
        stop: stop strings in UTF-8. A draft ends before the first one in its text, wherever token borders lie.
    """

    token_bytes: Sequence[bytes]
    eos_token_ids: frozenset[int]
    stop: tuple[bytes, ...] = ()

    def __call__(self, draft: Draft, token_id: int, logprob: float, token_logprob: float) -> Draft:
        """The child; its finish reason is "stop" if it ends here."""
        # Spelled out instead of `dataclasses.replace`, which takes three times as long: every step of every request
        # makes 2k children.
        token_ids, pieces, text, rest = draft.token_ids, draft.pieces, draft.text, draft.rest
        finish_reason: FinishReason | None = None
        if token_id in self.eos_token_ids:
            finish_reason = "stop"
        else:
            piece = self.token_bytes[token_id][len(rest) :]
            start = len(text)
            token_ids, pieces, text, rest = (*token_ids, token_id), (*pieces, piece), text + piece, b""
            if self.stop and (end := self._first_stop(text, start)) is not None:
                text, finish_reason = text[:end], "stop"
        return Draft(
            token_ids,
            text,
            logprob,
            draft.num_scored + 1,
            (*draft.token_logprobs, token_logprob),
            finish_reason,
            draft.ngram_state,
            draft.path,
            rest,
            pieces,
            draft.start,
        )

    def _first_stop(self, text: bytes, start: int) -> int | None:
        """Where the first stop string begins; the text before `start` holds none, so a new one ends behind it."""
        places = [text.find(stop, max(0, start - len(stop) + 1)) for stop in self.stop]
        return min((place for place in places if place >= 0), default=None)


@dataclass(frozen=True, slots=True)
class Children:
    """All children of the alive drafts of one branch, best first, made one by one as they are looked at.

    A child of score `-inf` is not among them.

    Attributes:
        parents: the alive drafts, k of them.
        token_ids: for each parent the tokens that it may go on with, shape [k, m]; mostly one shared list.
        logprobs: ln p of these tokens under the language model, shape [k, m].
        scores: the children's scores, shape [k * m], parent after parent.
        order: indices into `scores`, best first, shape [k * m].
    """

    parents: Sequence[Draft]
    token_ids: Sequence[Sequence[int]]
    logprobs: Sequence[Floats]
    scores: Floats
    order: NDArray[np.intp]

    @classmethod
    def of(
        cls, parents: Sequence[Draft], token_ids: Sequence[Sequence[int]], logprobs: Sequence[Floats], ln_p_f: Floats
    ) -> "Children":
        """The children of one branch.

        Args:
            parents: k drafts.
            token_ids: shape [k, m].
            logprobs: shape [k, m].
            ln_p_f: what each token adds to its parent's score, shape [k, m]; `-inf` is never chosen.
        """
        scores = (np.array([draft.logprob for draft in parents])[:, np.newaxis] + ln_p_f).ravel()
        return cls(parents, token_ids, logprobs, scores, best_first(scores))

    def each(self, extend: Extend) -> Iterator[tuple[int, Draft]]:
        """The children with their parents' indices."""
        num_tokens = len(self.scores) // len(self.parents)
        for flat in self.order.tolist():
            score = float(self.scores[flat])
            if score == -math.inf:
                return
            parent, token = divmod(flat, num_tokens)
            logprob = float(self.logprobs[parent][token])
            yield parent, extend(self.parents[parent], self.token_ids[parent][token], score, logprob)


def best_first(scores: Floats) -> NDArray[np.intp]:
    """The order of the scores of each row, highest first, shape [..., n] -> [..., n].

    The sort is stable: equal scores go to the better parent, then to the likelier token, on every machine.
    """
    return np.argsort(-scores, axis=-1, kind="stable")
