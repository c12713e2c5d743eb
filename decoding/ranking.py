"""The order in which finished drafts are shown."""

from dataclasses import replace

from superdraft.decoding.draft_set import Draft, DraftSet
from superdraft.decoding.tokenizer import valid_utf8_prefix


def rank(drafts: DraftSet, num_drafts: int) -> list[Draft]:
    """The answer: the best k of alive and finished drafts by length-normalised score (as the reference code answers).

    Drafts that were alive when the tokens ran out get the finish reason "length". Drafts with the same text count once,
    and one without any text is shown only if there is no other: nothing is no suggestion.

    Returns:
        Between 1 and `num_drafts` drafts, best first; none only for an empty draft set.
    """
    cut = [replace(draft, finish_reason="length") for draft in drafts.alive]
    best_first = sorted((*drafts.finished, *cut), key=lambda draft: -draft.mean_logprob)
    by_text: dict[str, Draft] = {}
    for draft in best_first:
        by_text.setdefault(valid_utf8_prefix(draft.text), draft)
    shown = [draft for text, draft in by_text.items() if text] or best_first[:1]
    return shown[:num_drafts]
