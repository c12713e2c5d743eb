"""Prompts that an engine accepts."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefixedText:
    """Token ids that are fed unchanged, followed by a text whose end is healed.

    A gap's prompt has this form: special tokens and the texts around the gap, then the beginning of the answer.

    Attributes:
        token_ids: at least one.
        text: plain text, which may be empty. Text that spells a control token does not become one.
    """

    token_ids: tuple[int, ...]
    text: str


class PlainText(str):
    """A text in which nothing becomes a special token. In any other `str`, names of special tokens become these."""

    __slots__ = ()


Prompt = str | Sequence[int] | PrefixedText
"""A text, perhaps a `PlainText`; token ids, which are fed unchanged and not healed; or token ids followed by a text."""
