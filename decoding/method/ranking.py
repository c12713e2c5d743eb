"""Ranking of the drafts of an answer."""

from dataclasses import replace

from superdraft.decoding.method.draft_set import Draft, DraftSet
from superdraft.decoding.method.selection import SelectionRule
from superdraft.decoding.text.tokenizer import valid_utf8_prefix


def rank(drafts: DraftSet, num_drafts: int, rule: SelectionRule) -> list[Draft]:
    """The best drafts, alive or finished.

    Alive drafts get the finish reason "length". Of drafts that are the same as the rule reads them, only the best is
    returned. A draft without text is returned only if there is no other, because it suggests nothing.

    Args:
        drafts: the drafts of all branches.
        num_drafts: the most drafts to return.
        rule: its score ranks drafts.

    Returns:
        At most `num_drafts` drafts, best first; at least one unless the draft set is empty.
    """
    cut = [replace(draft, finish_reason="length") for draft in drafts.alive]
    best_first = sorted((*drafts.finished, *cut), key=lambda draft: -rule.score(draft))
    by_text: dict[str, Draft] = {}
    for draft in best_first:
        by_text.setdefault(rule.as_read(valid_utf8_prefix(draft.text)), draft)
    shown = [draft for text, draft in by_text.items() if text] or best_first[:1]
    return shown[:num_drafts]
