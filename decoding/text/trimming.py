"""Trimming of drafts for display, the common beginning of several drafts, and what makes them different to a reader.

Trimming only cuts off the end, so the displayed text still continues from the prompt's last character.
"""

import re
from collections.abc import Sequence
from os.path import commonprefix

from superdraft.decoding.text.tokenizer import valid_utf8_prefix
from superdraft.decoding.text.words import is_word_character, last_word_start

_BLANK_LINES = re.compile(r"[^\S\n]*\n(?:\s*\n)?")
_LINE_BREAK = re.compile("[\n\r\x85\u2028\u2029]")
_HYPHENS_AND_APOSTROPHES = "-\u2010\u2011'\u2019"
_CONNECTORS = _HYPHENS_AND_APOSTROPHES + ".,:/@"
"""Characters inside a word: well-known, don't, 3.5, 10:30, e.g, and/or, e-mail and web addresses."""

_CLOSERS = "\"'\u201d\u2019\u00bb)\\]}\u300d\u300f\uff09\u3011\u300b"
_SENTENCE_END = re.compile(
    f"(?:[.!?\u2026\u061f\u0964]+[{_CLOSERS}]*(?=\\s|$)|[\u3002\uff01\uff1f\uff61]+[{_CLOSERS}]*)"
)
"""Full stop, ! ? \u2026 and their Arabic and Hindi forms before white space; the Chinese and Japanese ones anywhere."""

_LAST_CHUNK = re.compile(r"[^\W_]+(?:\.[^\W_]+)*\Z")
_LIST_NUMBER = re.compile(r"\n\s*\d{1,3}\Z")
_ABBREVIATION = re.compile(
    r"(?:mr|mrs|ms|dr|prof|st|sr|jr|vs|cf|al|etc|approx|ca|fig|eq|vol|pp|eds|ph\.d|inc|ltd|corp|dept|est|ave)", re.I
)
"""Words whose full stop rarely ends a sentence. "e.g.", "p.m.", "U.S." and initials are recognised by their form."""


def trim_text(text: str, finish_reason: str, single_line: bool, trim: str, last_word_complete: bool = False) -> str:
    """The part of a draft to display.

    Args:
        text: the draft's text.
        finish_reason: "stop" if the text is complete; otherwise its last word may be incomplete.
        single_line: cut at the first line break.
        trim: "none"; "word": drop a last word that may be incomplete, and white space at the end; "sentence": drop
            everything after the first sentence, or do as "word" if no sentence ends.
        last_word_complete: the last word is complete although the token limit was reached.

    Returns:
        A prefix of `text`, empty if the whole text may be an incomplete word.
    """
    is_complete = last_word_complete or finish_reason == "stop"
    line_break = _LINE_BREAK.search(text) if single_line else None
    if line_break is not None:
        text, is_complete = text[: line_break.start()], True
    if trim == "none":
        return text
    ends = sentence_ends(text) if trim == "sentence" else []
    if ends:
        return text[: ends[0]]
    return (text if is_complete else without_last_word(text)).rstrip()


def without_last_word(text: str) -> str:
    """`text` without the word at its very end; a hyphen or apostrophe there counts as part of an unfinished word."""
    if text and text[-1] in _CONNECTORS and text[-1] not in _HYPHENS_AND_APOSTROPHES:
        return text
    return text[: last_word_start(text, _CONNECTORS)]


def ends_word(last: str, following: str) -> bool:
    """Whether a word ends after a character: before white space, or always in a script without spaces.

    Args:
        last: the character before the place; "" if there is none.
        following: the text after it; "" is the end of the text.
    """
    is_unspaced = last.isalnum() and not is_word_character(last)
    return last != "" and not last.isspace() and (not following or following[0].isspace() or is_unspaced)


def sentence_ends(text: str) -> list[int]:
    """The index after each sentence of `text`, including its closing quotes and brackets."""
    return [match.end() for match in _SENTENCE_END.finditer(text) if _ends_sentence(text, match)]


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    """Whether a match of `_SENTENCE_END` ends a sentence rather than an abbreviation, an initial or a list number."""
    if match[0] != ".":
        return True
    before = text[: match.start()]
    if _LIST_NUMBER.search(before):
        return False
    chunk = _LAST_CHUNK.search(before)
    if chunk is None or chunk[0] == "I":
        return True
    # "e.g", "p.m", "U.S", and the "J" of "J. Smith": single letters only. A single digit ends a sentence.
    are_initials = all(len(part) == 1 and part.isalpha() for part in chunk[0].split("."))
    return not are_initials and _ABBREVIATION.fullmatch(chunk[0]) is None


def stable_prefix(texts: Sequence[bytes]) -> str:
    """The common beginning of `texts`, in whole characters; "" if there are no texts."""
    return valid_utf8_prefix(commonprefix(list(texts)) or b"")  # noqa: RUF071 (texts, not paths)


def as_read(text: str) -> str:
    """What makes a draft different to a reader: its text without white space at the end of its lines and blank lines.

    A text of white space only stays as it is, since something else may follow.
    """
    return _BLANK_LINES.sub("\n", text.rstrip()) or text


def tokens_within(token_bytes: Sequence[bytes], num_bytes: int) -> int:
    """How many tokens cover the first `num_bytes` bytes, the last one perhaps only in part."""
    start = 0
    for index, token in enumerate(token_bytes):
        if start >= num_bytes:
            return index
        start += len(token)
    return len(token_bytes)
