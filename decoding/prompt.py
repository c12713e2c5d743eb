"""What an engine can be given to go on from."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefixedText:
    """Token ids that are fed as they are, then a text that goes on behind them and whose end is healed.

    The prompt of a gap is of this kind: special tokens and the texts around the gap, then what the answer begins with.

    Attributes:
        token_ids: at least one.
        text: plain text, which may be empty. Text that spells a control token does not become one.
    """

    token_ids: tuple[int, ...]
    text: str


Prompt = str | Sequence[int] | PrefixedText
"""A text; token ids that are fed as they are and not healed; or both, one behind the other."""
