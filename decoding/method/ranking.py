"""The order in which finished drafts are shown, and the score that it goes by."""

from collections.abc import Callable
from dataclasses import replace

from superdraft.decoding.method.draft_set import Draft, DraftSet
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.text.tokenizer import valid_utf8_prefix

Score = Callable[[Draft], float]


def score_of(params: GenerationParams) -> Score:
    """What drafts are ranked by: the mean of ln p_f, as in the reference code, or how probable their beginnings are."""
    is_distinct = params.strategy == "superposed" and params.selection == "distinct"
    return start_logprob if is_distinct else lambda draft: draft.mean_logprob


def start_logprob(draft: Draft) -> float:
    """Ln of the language model's probability that the text goes on with the draft's first word.

    A word is what white space separates. If the draft left another one later than with its first word, all words up to
    the one that tells them apart count. Exact as far as the draft's row was its own.
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


def rank(drafts: DraftSet, num_drafts: int, score: Score = lambda draft: draft.mean_logprob) -> list[Draft]:
    """The answer: the best drafts, alive or finished.

    Drafts that were alive when the tokens ran out get the finish reason "length". Drafts with the same text count once,
    and one without any text is shown only if there is no other: nothing is no suggestion.

    Args:
        drafts: of all branches.
        num_drafts: how many are wanted.
        score: higher is better; by default the length-normalised one, by which the reference code answers.

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
