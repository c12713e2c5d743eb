"""Quality measures of drafts for gaps: pure functions over texts.

Only a draft's first line counts. A *token* is a name, a number or another single character, with the blanks before it.
"""

import re
from collections.abc import Sequence

_TOKEN = re.compile(r"[^\S\n]*(?:\w+|[^\w\s])")


def first_line(draft: str) -> str:
    """A draft up to its first line break, without blanks at the end."""
    return draft.partition("\n")[0].rstrip()


def is_exact_line(draft: str, reference: str) -> bool:
    """Whether the draft's first line equals the reference."""
    return first_line(draft) == reference.rstrip()


def is_first_word_right(draft: str, reference: str) -> bool:
    """Whether the draft's first token is the reference's."""
    return tokens_right(draft, reference) > 0


def is_first_character_right(draft: str, reference: str) -> bool:
    """Whether the draft's first character is the reference's, which may be a blank."""
    return bool(reference) and draft[:1] == reference[:1]


def tokens_right(draft: str, reference: str) -> int:
    """Length, in tokens, of the longest right beginning of a draft."""
    ours, theirs = _TOKEN.findall(first_line(draft)), _TOKEN.findall(reference)
    pairs = zip(ours, theirs, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


def keys_saved(drafts: Sequence[str], reference: str) -> int:
    """The number of the reference's keys that one request at the cursor saves.

    The longest right beginning of any draft, up to the end of a token, is accepted for one key and one more for each
    draft above it. Nothing is accepted that saves no key.
    """
    tokens = _TOKEN.findall(reference)
    saved = (sum(map(len, tokens[: tokens_right(draft, reference)])) - 1 - rank for rank, draft in enumerate(drafts))
    return max(0, *saved, 0)
