"""What drafts for a gap are worth: pure functions over texts.

Only a draft's first line counts. A *token* is a name, a number or another single character, with the blanks before it.
"""

import re
from collections.abc import Sequence

_TOKEN = re.compile(r"[^\S\n]*(?:\w+|[^\w\s])")


def first_line(draft: str) -> str:
    """A draft up to its first line break, without blanks at the end."""
    return draft.partition("\n")[0].rstrip()


def is_exact_line(draft: str, reference: str) -> bool:
    """Whether the draft's first line is all of the reference and nothing else."""
    return first_line(draft) == reference.rstrip()


def is_first_word_right(draft: str, reference: str) -> bool:
    """Whether the draft begins with the reference's first token, and that token ends there."""
    return tokens_right(draft, reference) > 0


def is_first_character_right(draft: str, reference: str) -> bool:
    """Whether the draft begins with the reference's first character, which may be a blank."""
    return bool(reference) and draft[:1] == reference[:1]


def tokens_right(draft: str, reference: str) -> int:
    """Length, in tokens, of the longest right beginning of a draft."""
    ours, theirs = _TOKEN.findall(first_line(draft)), _TOKEN.findall(reference)
    pairs = zip(ours, theirs, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def keys_saved(drafts: Sequence[str], reference: str) -> int:
    """Keys that one request at the cursor saves of those of the reference.

    The longest right beginning of any draft, up to a token's end, is taken for one key and one more for each draft
    above it; nothing is taken that saves no key.
    """
    tokens = _TOKEN.findall(reference)
    saved = (sum(map(len, tokens[: tokens_right(draft, reference)])) - 1 - rank for rank, draft in enumerate(drafts))
    return max(0, *saved, 0)
