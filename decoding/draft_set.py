"""The k drafts of a request and the step that makes the next k of them (Shen et al., 2024, section 3).

Pure values: a step takes a draft set and scores and returns a new draft set.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from superdraft.decoding.outputs import FinishReason
from superdraft.decoding.scoring import Candidates, Floats
from superdraft.decoding.superposition import draft_weights


@dataclass(frozen=True, slots=True)
class Draft:
    """One draft: the tokens after the prompt.

    Attributes:
        token_ids: its tokens; an end-of-text token is not kept.
        pieces: the bytes that each token adds to the prompt; none for one that only repeats what was typed.
        text: all of them together, cut before a stop string.
        logprob: its score, the sum of ln p_f over its tokens (eq. 6), end of text included.
        num_scored: how many terms that sum has.
        token_logprobs: ln p of each token in the step that chose it, at temperature 1, without the n-gram model.
        finish_reason: None while it is alive.
        ngram_state: the n-gram model's state after prompt and draft; belongs to this draft alone.
        healing: what the draft still has to repeat of a word that was typed half, before it adds anything (token
            healing).
    """

    token_ids: tuple[int, ...] = ()
    text: bytes = b""
    logprob: float = 0.0
    num_scored: int = 0
    token_logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    ngram_state: Hashable = None
    healing: bytes = b""
    pieces: tuple[bytes, ...] = ()

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
    totals = np.concatenate([draft.logprob + row for draft, row in zip(drafts.alive, scores, strict=True)])
    starts = np.cumsum([0, *(len(row) for row in scores)])
    alive: list[Draft] = []
    ended: list[Draft] = []
    # Distinct as text. Alive and ended ones are told apart: an alive draft may have the text of an ended one and grow
    # past it.
    alive_texts: set[tuple[bytes, bytes]] = set()
    ended_texts = {(draft.text, draft.healing) for draft in drafts.finished}
    # A stable sort: equal scores go to the better parent, then to the likelier token, on every machine.
    for flat in np.argsort(-totals, kind="stable").tolist():
        if len(alive) + len(ended) == 2 * num_drafts or totals[flat] == -np.inf:
            break
        parent = int(np.searchsorted(starts, flat, side="right")) - 1
        token = flat - int(starts[parent])
        child = extend(drafts.alive[parent], candidates[parent].token_ids[token])
        group, texts = (alive, alive_texts) if child.finish_reason is None else (ended, ended_texts)
        if (child.text, child.healing) in texts:
            continue
        texts.add((child.text, child.healing))
        group.append(
            replace(
                child,
                logprob=float(totals[flat]),
                num_scored=child.num_scored + 1,
                token_logprobs=(*child.token_logprobs, float(candidates[parent].logprobs[token])),
            )
        )
    finished = sorted((*drafts.finished, *ended), key=lambda draft: -draft.logprob)
    return DraftSet(tuple(alive[:num_drafts]), tuple(finished[:num_drafts]))
