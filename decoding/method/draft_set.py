"""The k drafts of a request and the step that makes the next k of them (Shen et al., 2024).

Pure values: a step takes a draft set and scores and returns a new draft set.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from superdraft.decoding.method.scoring import Candidates, Floats
from superdraft.decoding.method.superposition import draft_weights
from superdraft.decoding.outputs import FinishReason
from superdraft.decoding.text.tokenizer import valid_utf8_prefix
from superdraft.decoding.text.trimming import trim_text

MIN_START_PROBABILITY = 0.01
"""With the selection "distinct": a draft less probable than this is not begun beside others."""

MAX_COMMON_WORDS = 3
"""With the selection "distinct": two drafts differ in one of their first words."""


@dataclass(frozen=True, slots=True)
class Draft:
    """One draft: the tokens after the prompt.

    Attributes:
        token_ids: its tokens; an end-of-text token is not kept.
        pieces: the bytes that each token adds to the prompt.
        text: all of them together, cut before a stop string.
        logprob: its score, the sum of ln p_f over its tokens (eq. 6), end of text included.
        num_scored: how many terms that sum has.
        token_logprobs: ln p of each token in the step that chose it, at temperature 1, without the n-gram model.
        finish_reason: None while it is alive.
        ngram_state: the n-gram model's state after prompt and draft; belongs to this draft alone.
        path: the typed tokens in front of it that its row holds after those that all covers share (token healing).
        rest: of a draft without tokens: typed bytes that its first token has to begin with, and that are not its own.
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
        """Its first word is finished: something follows it that is no part of a word."""
        return trim_text(valid_utf8_prefix(self.text), "length", single_line=False, trim="word") != ""

    @property
    def mean_logprob(self) -> float:
        """The length-normalised score by which finished drafts of different lengths are ranked."""
        return self.logprob / max(self.num_scored, 1)


Extend = Callable[[Draft, int], Draft]
"""Adds one token to a draft: its ids and text, and a finish reason if it ends there. Leaves scores and n-gram state
alone."""


@dataclass(frozen=True, slots=True)
class DraftSet:
    """The drafts of one branch, which share one model row.

    Attributes:
        alive: drafts that still grow, best first; at the start one empty draft, the prompt itself.
        finished: drafts that ended, best first by `logprob`, k at most.
    """

    alive: tuple[Draft, ...] = (Draft(),)
    finished: tuple[Draft, ...] = ()

    @property
    def weights(self) -> NDArray[np.float64]:
        """gamma, the share of each alive draft in the superposed embedding (eq. 4), shape [k]."""
        return draft_weights([draft.logprob for draft in self.alive])

    @property
    def num_shown(self) -> int:
        """Drafts that are alive, or have ended with some text."""
        return len(self.alive) + sum(bool(draft.text) for draft in self.finished)

    @property
    def is_done(self) -> bool:
        """No draft is left to grow."""
        return not self.alive


def advance(
    drafts: DraftSet, candidates: Sequence[Candidates], scores: Sequence[Floats], num_drafts: int, extend: Extend
) -> DraftSet:
    """Choose the next k drafts among all children of the alive ones.

    The rule is the reference code's, also at the first step, where the only parent is the prompt. (The paper's eq. 1
    scores the first token by the language model alone; the published constants were tuned with the reference.) The 2k
    best children with different texts are looked at; those that end go to `finished`, the k best others live on.

    Args:
        drafts: the draft set so far, n drafts alive.
        candidates: for each of them the m tokens that it may go on with; mostly one object that all share.
        scores: for each of them ln p_f, shape [m]; `-inf` is never chosen.
        num_drafts: k.
        extend: makes a child of a draft.

    Returns:
        The new draft set. Fewer than k drafts are alive when fewer children exist.
    """
    alive: list[Draft] = []
    ended: list[Draft] = []
    # Distinct as text. Alive and ended ones are told apart: an alive draft may have the text of an ended one and grow
    # past it.
    alive_texts: set[bytes] = set()
    ended_texts = {draft.text for draft in drafts.finished}
    for _, child in _children(drafts, candidates, scores, extend):
        if len(alive) + len(ended) == 2 * num_drafts:
            break
        group, texts = (alive, alive_texts) if child.finish_reason is None else (ended, ended_texts)
        if child.text not in texts:
            texts.add(child.text)
            group.append(child)
    finished = sorted((*drafts.finished, *ended), key=lambda draft: -draft.logprob)
    return DraftSet(tuple(alive[:num_drafts]), tuple(finished[:num_drafts]))


def advance_distinct(
    drafts: DraftSet,
    candidates: Sequence[Candidates],
    scores: Sequence[Floats],
    num_drafts: int,
    extend: Extend,
    min_probability: float = MIN_START_PROBABILITY,
) -> DraftSet:
    """Give every draft its best child, and begin new drafts while there are fewer than k: ours, not the paper's.

    So the first step begins the k best tokens, unless some are improbable; a place that stays free is taken by the
    second child of a draft, at the first step where it has a probable one. A draft begins with its first word, or
    leaves another one within `MAX_COMMON_WORDS`: later would only show the same suggestion twice.

    Args:
        drafts: the draft set so far, n drafts alive.
        candidates: for each of them the m tokens that it may go on with.
        scores: for each of them ln p_f, shape [m]; `-inf` is never chosen.
        num_drafts: k, those that have ended with some text included.
        extend: makes a child of a draft.
        min_probability: what the language model must give a new draft beside others.

    Returns:
        The new draft set.
    """
    alive: list[Draft] = []
    finished = list(drafts.finished)
    num_free = (
        num_drafts - sum(bool(draft.text) for draft in finished) - sum(bool(draft.start) for draft in drafts.alive)
    )
    heirless = {index for index, draft in enumerate(drafts.alive) if draft.start}
    seen: set[bytes] = set()
    for parent, child in _children(drafts, candidates, scores, extend):
        if parent in heirless:
            heirless.remove(parent)
        elif num_free > 0 and _may_begin(child, min_probability if alive else 0.0, seen):
            child = replace(child, start=child.text)
            num_free -= bool(child.text) or child.finish_reason is None
        elif not heirless and (num_free <= 0 or child.lm_logprob < math.log(min_probability)):
            break
        else:
            continue
        seen.add(child.text)
        (alive if child.finish_reason is None else finished).append(child)
    finished.sort(key=lambda draft: -draft.logprob)
    return DraftSet(tuple(alive), tuple(finished))


def _may_begin(child: Draft, min_probability: float, seen: set[bytes]) -> bool:
    if child.text in seen or len(child.text.split()) > MAX_COMMON_WORDS:
        return False
    return min_probability == 0 or child.lm_logprob >= math.log(min_probability)


def scored(child: Draft, logprob: float, token_logprob: float) -> Draft:
    """A child with the score `logprob`, whose last token the language model gave ln p `token_logprob`."""
    return replace(
        child,
        logprob=logprob,
        num_scored=child.num_scored + 1,
        token_logprobs=(*child.token_logprobs, token_logprob),
    )


def _children(
    drafts: DraftSet, candidates: Sequence[Candidates], scores: Sequence[Floats], extend: Extend
) -> Iterator[tuple[int, Draft]]:
    """All children of the alive drafts with their parents' indices, best first; those of score -inf are none."""
    totals = np.concatenate([draft.logprob + row for draft, row in zip(drafts.alive, scores, strict=True)])
    starts = np.cumsum([0, *(len(row) for row in scores)])
    # A stable sort: equal scores go to the better parent, then to the likelier token, on every machine.
    for flat in np.argsort(-totals, kind="stable").tolist():
        if totals[flat] == -np.inf:
            return
        parent = int(np.searchsorted(starts, flat, side="right")) - 1
        token = flat - int(starts[parent])
        child = extend(drafts.alive[parent], candidates[parent].token_ids[token])
        yield parent, scored(child, float(totals[flat]), float(candidates[parent].logprobs[token]))
