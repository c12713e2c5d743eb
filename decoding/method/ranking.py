"""The order in which finished drafts are shown."""

from collections.abc import Callable
from dataclasses import replace

from superdraft.decoding.method.draft_set import Draft, DraftSet
from superdraft.decoding.text.tokenizer import valid_utf8_prefix

Score = Callable[[Draft], float]


def rank(drafts: DraftSet, num_drafts: int, score: Score) -> list[Draft]:
    """The answer: the best drafts, alive or finished.

    Drafts that were alive when the tokens ran out get the finish reason "length". Drafts with the same text count once,
    and one without text is shown only if there is no other: nothing is not a suggestion.

    Args:
        drafts: of all branches.
        num_drafts: how many are wanted.
        score: higher is better; see `SelectionRule.score`.

    Returns:
        Between 1 and `num_drafts` drafts, best first; none only for an empty draft set.
    """
    cut = [replace(draft, finish_reason="length") for draft in drafts.alive]
    best_first = sorted((*drafts.finished, *cut), key=lambda draft: -score(draft))
    by_text: dict[str, Draft] = {}
    for draft in best_first:
        by_text.setdefault(valid_utf8_prefix(draft.text), draft)
    shown = [draft for text, draft in by_text.items() if text] or best_first[:1]
    return shown[:num_drafts]
