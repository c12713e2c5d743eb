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


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A prompt as token ids, the model's input.

    Attributes:
        token_ids: all tokens, at least one.
        num_start: 1 if the first token is the one that begins a document and was put in front; else 0.
        num_fixed: tokens before the prompt's text, which healing must not change: the token that begins a document,
            special tokens, tokens given as ids.
        text: the prompt's text; None if the prompt was given as token ids.
        is_whole: False if tokens between the fixed ones and the end of a long text are missing.
    """

    token_ids: tuple[int, ...]
    num_start: int = 0
    num_fixed: int = 0
    text: str | None = None
    is_whole: bool = True


Prompt = str | Sequence[int] | PrefixedText
"""A text, perhaps a `PlainText`; token ids, which are fed unchanged and not healed; or token ids followed by a text."""
