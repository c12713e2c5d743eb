"""Drafts, draft sets, and the scored children from which a step selects the next draft set (Shen et al., 2024).

All of these are immutable values.
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
        token_ids: the draft's tokens, without an end-of-text token.
        text: the bytes that the tokens add to the prompt, cut before a stop string.
        logprob: the draft's score, the sum of ln p_f over its tokens (eq. 6), end of text included.
        num_scored: how many terms that sum has.
        token_logprobs: ln p of each token in the step that chose it, at temperature 1, without the n-gram model, end of
            text included.
        finish_reason: None while the draft is alive.
        ngram_state: the n-gram model's state after prompt and draft.
        stem_ids: with token healing, the typed tokens between the tokens that all covers share and the draft.
        rest: for a draft without tokens, the typed bytes with which its first token must begin. They are not part of
            the draft's text.
        pieces: the bytes that each token adds.
        start: with the selection "distinct", the draft's text in the step that began it; empty before that.
        replaced: the typed bytes at the prompt's end that the text takes the place of, as they were mistyped.
        word_logprob: of the best draft behind a finished word that it corrects, ln of the probability of this word.
    """

    token_ids: tuple[int, ...] = ()
    text: bytes = b""
    logprob: float = 0.0
    num_scored: int = 0
    token_logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    ngram_state: Hashable = None
    stem_ids: tuple[int, ...] = ()
    rest: bytes = b""
    pieces: tuple[bytes, ...] = ()
    start: bytes = b""
    replaced: bytes = b""
    word_logprob: float | None = None

    @property
    def lm_logprob(self) -> float:
        """The language model's ln of the probability of the whole draft: the sum of `token_logprobs`."""
        return math.fsum(self.token_logprobs)

    @property
    def has_word(self) -> bool:
        """Whether the first word is finished, that is, followed by something that is not part of it."""
        return trim_text(valid_utf8_prefix(self.text), "length", single_line=False, trim="word") != ""

    @property
    def mean_logprob(self) -> float:
        """The length-normalised score: the mean of ln p_f over the draft's tokens."""
        return self.logprob / max(self.num_scored, 1)


@dataclass(frozen=True, slots=True)
class DraftSet:
    """The drafts of one branch, which share one model row.

    Attributes:
        alive: drafts that can grow, best first. Before the first step this is one empty draft, the prompt itself.
        finished: drafts that ended, best first by `logprob`.
    """

    alive: tuple[Draft, ...] = (Draft(),)
    finished: tuple[Draft, ...] = ()

    @property
    def num_shown(self) -> int:
        """How many drafts are alive, or ended with some text."""
        return len(self.alive) + sum(bool(draft.text) for draft in self.finished)

    @property
    def is_done(self) -> bool:
        """Whether no draft can grow."""
        return not self.alive


class Extend(Protocol):
    """A function that makes a child of a draft: the draft with one more token."""

    def __call__(self, draft: Draft, token_id: int, logprob: float, token_logprob: float) -> Draft:
        """Make the child.

        Args:
            draft: the parent.
            token_id: the new token.
            logprob: the child's score.
            token_logprob: ln p of the token under the language model.
        """


@dataclass(frozen=True, slots=True)
class TokenAppender:
    """The `Extend` of a request: applies its end-of-text tokens and stop strings.

    The child keeps its parent's n-gram state. The state is advanced later, for the selected children only.

    Attributes:
        token_bytes: the bytes of every token id.
        eos_token_ids: tokens that end a text. They add nothing to it.
        stop: stop strings in UTF-8. A draft ends before the first one in its text, which may span several tokens.
    """

    token_bytes: Sequence[bytes]
    eos_token_ids: frozenset[int]
    stop: tuple[bytes, ...] = ()

    def __call__(self, draft: Draft, token_id: int, logprob: float, token_logprob: float) -> Draft:
        """Make the child. If it ends with this token, its finish reason is "stop"."""
        # The constructor instead of `dataclasses.replace`, which takes 1.7 times as long: every step of every request
        # makes 2k children.
        token_ids, pieces, text, rest = draft.token_ids, draft.pieces, draft.text, draft.rest
        finish_reason: FinishReason | None = None
        if token_id in self.eos_token_ids:
            finish_reason = "stop"
        else:
            piece = self.token_bytes[token_id][len(rest) :]
            start, text = len(text), text + piece
            # The text before the first token is the stem of a correction.
            token_ids, pieces, rest = (*token_ids, token_id), (*pieces, piece) if pieces else (text,), b""
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
            draft.stem_ids,
            rest,
            pieces,
            draft.start,
            draft.replaced,
            draft.word_logprob,
        )

    def _first_stop(self, text: bytes, start: int) -> int | None:
        """Where the first stop string begins. Since `text[:start]` has none, a stop string must end after `start`."""
        places = [text.find(stop, max(0, start - len(stop) + 1)) for stop in self.stop]
        return min((place for place in places if place >= 0), default=None)


@dataclass(frozen=True, slots=True)
class Children:
    """The scored children of a branch's alive drafts. `each` makes them one by one, best first.

    Attributes:
        parents: the k alive drafts.
        token_ids: the candidates of each parent, shape [k, m]; usually one shared list.
        logprobs: ln p of the candidates under the language model, shape [k, m].
        scores: the children's scores, shape [k * m], parent after parent. A child with the score `-inf` is never made.
        order: indices into `scores`, best first, shape [k * m].
        starts: the texts with which drafts of the request begin, after one token. A child that spells one of them with
            several tokens is never made.
    """

    parents: Sequence[Draft]
    token_ids: Sequence[Sequence[int]]
    logprobs: Sequence[Floats]
    scores: Floats
    order: NDArray[np.intp]
    starts: frozenset[bytes] = frozenset()

    @classmethod
    def of(
        cls, parents: Sequence[Draft], token_ids: Sequence[Sequence[int]], logprobs: Sequence[Floats], ln_p_f: Floats
    ) -> "Children":
        """The children of one branch, scored by parent and candidate.

        Args:
            parents: k drafts.
            token_ids: shape [k, m].
            logprobs: shape [k, m].
            ln_p_f: what each candidate adds to its parent's score, shape [k, m]; `-inf`: never chosen.
        """
        scores = (np.array([draft.logprob for draft in parents])[:, np.newaxis] + ln_p_f).ravel()
        return cls(parents, token_ids, logprobs, scores, best_first(scores))

    def each(self, extend: Extend) -> Iterator[tuple[int, Draft]]:
        """Make the children, best first, each with the index of its parent."""
        num_tokens = len(self.scores) // len(self.parents)
        for flat in self.order.tolist():
            score = float(self.scores[flat])
            if score == -math.inf:
                return
            parent, token = divmod(flat, num_tokens)
            logprob = float(self.logprobs[parent][token])
            child = extend(self.parents[parent], self.token_ids[parent][token], score, logprob)
            if not child.pieces or len(child.text) <= len(child.pieces[0]) or child.text not in self.starts:
                yield parent, child


def best_first(scores: Floats) -> NDArray[np.intp]:
    """Indices that sort each row of scores, highest first, shape [..., n] -> [..., n].

    The sort is stable: of equal scores the better parent comes first, then the more probable token, on every machine.
    """
    return np.argsort(-scores, axis=-1, kind="stable")
