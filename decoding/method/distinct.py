"""The selection "distinct": one draft for each of the k best first tokens. Ours, not the paper's."""

import math
from dataclasses import replace

from superdraft.decoding.method.draft_set import Children, Draft, DraftSet, Extend

MIN_START_PROBABILITY = 0.01
"""A draft less probable than this does not begin beside others."""

MAX_COMMON_WORDS = 3
"""Two drafts differ in one of their first words."""


class Distinct:
    """Every draft goes on with its own best child; new drafts begin while there are fewer than k.

    So the first step begins the k best tokens, unless some are improbable. A free place is taken by the second child of
    a draft, at the first step where that child is probable enough. A draft begins with its first word, or leaves
    another draft within `MAX_COMMON_WORDS` words: later would only show the same suggestion twice.
    """

    name = "distinct"
    # The first tokens are exact, and no n-gram model was found to help.
    alpha = 0.0
    tau = 1.0
    divides = True
    # k begin; the others stand in for those that are equal as text.
    starts_per_draft: int | None = 2

    def select(
        self,
        drafts: DraftSet,
        children: Children,
        extend: Extend,
        num_drafts: int,
        min_probability: float = MIN_START_PROBABILITY,
    ) -> DraftSet:
        """The next draft set.

        Args:
            drafts: the draft set so far.
            children: all children of its alive drafts.
            extend: makes a child.
            num_drafts: k, less the drafts on other rows of the same request.
            min_probability: what the language model must give a draft that begins beside others.
        """
        alive: list[Draft] = []
        finished = list(drafts.finished)
        num_free = num_drafts - sum(bool(draft.text) for draft in finished)
        num_free -= sum(bool(draft.start) for draft in drafts.alive)
        heirless = {index for index, draft in enumerate(drafts.alive) if draft.start}
        seen: set[bytes] = set()
        for parent, child in children.each(extend):
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
            if not heirless and num_free <= 0:
                break
        finished.sort(key=lambda draft: -draft.logprob)
        return DraftSet(tuple(alive), tuple(finished))

    def score(self, draft: Draft) -> float:
        """Ln of the language model's probability that the text goes on with the draft's first word.

        A word is what white space separates. If the draft left another one later than with its first word, all words up
        to the one that tells them apart count. Exact as far as the draft had a row of its own.
        """
        text = b""
        total = 0.0
        for index, logprob in enumerate(draft.token_logprobs):
            piece = draft.pieces[index] if index < len(draft.pieces) else b""  # end of text
            if text.strip() and len(text) >= len(draft.start) and (not piece or piece[:1].isspace()):
                break
            text += piece
            total += logprob
        return total


def _may_begin(child: Draft, min_probability: float, seen: set[bytes]) -> bool:
    if child.text in seen or len(child.text.split()) > MAX_COMMON_WORDS:
        return False
    return min_probability == 0 or child.lm_logprob >= math.log(min_probability)
