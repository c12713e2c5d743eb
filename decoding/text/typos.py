"""Typos: what a typed word may have been meant to be.

A noise channel (Kernighan, Church and Gale, 1990; Norvig, 2007): whoever means `w` types `t` with the probability
`P(t | w)`, so given what was typed, `P(w | t)` is proportional to `P(w | text before) * P(t | w)`. The language model
gives the first factor. This module gives the second, for all `w` that are one edit away from `t`: a letter replaced,
most often by a neighbour on the keyboard, two letters swapped, one left out, doubled or added, an apostrophe, accent or
capital left out. A word typed without an error has the factor 1 (`text/covers` has its probability), so both compete in
one posterior.

`t` is the word at the end of a text, finished by a blank or not. Of an unfinished word, `w` is the beginning.
"""

import math
import re
import string
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

MIN_LETTERS, MAX_LETTERS = 3, 20
"""Shorter words are within one edit of too many others, and longer ones are seldom words."""

# P(typed | meant) of one edit at one place.
_SWAPPED = 0.0012
_DOUBLED, _UNDOUBLED = 0.0008, 0.0016
_NEIGHBOUR, _VOWEL, _OTHER = 0.0004, 0.0003, 0.00006
_LEFT_OUT, _ADDED = 0.0003, 0.00008
_NO_APOSTROPHE, _NO_ACCENT, _NO_CAPITAL = 0.01, 0.01, 0.01
_FIRST = 0.2
"""The first letter of a word is seldom wrong."""

MAX_EDIT_PROBABILITY = 0.01
"""Of one edit, the highest."""

_NAME = 0.002
"""Words with a capital inside a sentence are mostly names, of which a model knows few."""

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_VOWELS = frozenset("aeiouy")
_LETTERS = string.ascii_lowercase

_LAST_WORD = re.compile(r"(?:^|(?<=[\s(\"\u201c\u2018\u00ab\u2014]))([^\W\d_]+(?:['\u2019][^\W\d_]+)?)( ?)\Z")
_CODE = re.compile(
    r"[{}<>=;\\|`]|\w\(|\w_\w|\]\(|[a-z][A-Z]|\w\.\w+\.\w|://|#include|^\s*(?:def|import|from|class|\$) ", re.M
)
_AFTER_LATIN = "\u0250"
_SENTENCE_START = re.compile(r"(?:^|[.!?:\n]|[\"\u201c(])\s*\Z")
_LOOKED_AT = 400
_MAX_CODE_SIGNS = 2


def _neighbours() -> dict[str, frozenset[str]]:
    """The keys beside each letter, on the same row and the rows above and below."""
    places = {key: (x + 0.5 * y, y) for y, row in enumerate(_ROWS) for x, key in enumerate(row)}
    return {
        one: frozenset(other for other, (a, b) in places.items() if 0 < math.hypot(x - a, y - b) < 1.2)
        for one, (x, y) in places.items()
    }


NEIGHBOURS = _neighbours()
"""By letter, the keys beside it."""

_ACCENTED = {
    plain: [c for c in map(chr, range(0xE0, 0x180)) if unicodedata.normalize("NFD", c)[0] == plain and c.islower()]
    for plain in "aceinosuyz"
}


@dataclass(frozen=True, slots=True)
class TypedWord:
    """The last word of a text, which may be a typo.

    Attributes:
        text: its characters.
        before: the text before it.
        is_finished: a blank follows it.
    """

    text: str
    before: str = field(repr=False)
    is_finished: bool

    @property
    def typed(self) -> str:
        """The word with the blanks around it: a tokenizer's pieces of text begin with the blank before a word."""
        return " " * self.before.endswith(" ") + self.text + " " * self.is_finished

    @property
    def may_be_name(self) -> bool:
        """Whether it has a capital that does not begin a sentence."""
        return self.text[0].isupper() and not _SENTENCE_START.search(self.before[-_LOOKED_AT:])

    @property
    def is_repeated(self) -> bool:
        """Whether it stands in the text before it, too; unfinished, as the beginning of a word."""
        word = re.escape(self.text) + (r"(?!\w)" if self.is_finished else "")
        return re.search(rf"(?<!\w){word}", self.before, re.IGNORECASE) is not None


@dataclass(frozen=True, slots=True)
class Corrections:
    """What the typed bytes at the end of a prompt may have been meant to be.

    Attributes:
        typed: these bytes, with the blanks around the word.
        meant: ln P(typed | meant) by the bytes that may have been meant, without a blank behind the word.
        is_finished: the word has ended.
    """

    typed: bytes
    meant: dict[bytes, float]
    is_finished: bool

    @classmethod
    def of(cls, word: TypedWord) -> "Corrections":
        """All that is one edit away from a word."""
        probabilities: dict[str, float] = {}
        for meant, probability in _edits(word.text.lower(), word.is_finished):
            probabilities[meant] = max(probability, probabilities.get(meant, 0.0))
        if word.text[0].isupper():
            share = _NAME if word.may_be_name else 1.0
            probabilities = {meant[:1].upper() + meant[1:]: share * p for meant, p in probabilities.items()}
        else:
            probabilities[word.text.capitalize()] = _NO_CAPITAL
        probabilities.pop(word.text, None)
        blank = word.typed[: word.typed.startswith(" ")]
        meant_bytes = {(blank + meant).encode(): math.log(p) for meant, p in probabilities.items()}
        return cls(word.typed.encode(), meant_bytes, word.is_finished)


def last_word(text: str) -> TypedWord | None:
    """The word at the end of a text, if it may be a typo.

    It is none if it has other letters than Latin ones or capitals inside, is short, or is part of an address, a path, a
    mention or code. A word that stands elsewhere in the text is no typo either, since writers repeat their names and
    terms; but to find it takes longer (`TypedWord.is_repeated`).
    """
    found = _LAST_WORD.search(text[-(MAX_LETTERS + 3) :])
    if found is None:
        return None
    word, before = found[1], text[: len(text) - len(found[1]) - len(found[2])]
    is_latin = max(word) < _AFTER_LATIN
    if not (is_latin and MIN_LETTERS <= len(word) <= MAX_LETTERS and word[1:] == word[1:].lower()):
        return None
    if len(_CODE.findall(before[-_LOOKED_AT:])) > _MAX_CODE_SIGNS:
        return None
    return TypedWord(word, before, bool(found[2]))


def _edits(word: str, is_finished: bool) -> Iterator[tuple[str, float]]:
    """Each text that is one edit away from a typed word in lower case, with the probability of this edit."""
    for place, (one, other) in enumerate(pairwise(word)):
        if one != other:
            yield word[:place] + other + one + word[place + 2 :], _SWAPPED * (1 if place else _FIRST)
    for place, letter in enumerate(word):
        at_place = 1 if place else _FIRST
        before, after = word[:place], word[place + 1 :]
        for meant in _LETTERS:
            if meant != letter:
                yield before + meant + after, _replaced(meant, letter) * at_place
        for meant in _ACCENTED.get(letter, ()):
            yield before + meant + after, _NO_ACCENT
        beside = before[-1:] + after[:1]
        is_double = letter in beside
        if after or is_finished or is_double:
            near = _DOUBLED if is_double else _NEIGHBOUR if NEIGHBOURS.get(letter, frozenset()) & set(beside) else 0
            yield before + after, max(near, _ADDED) * at_place
    for place in range(len(word) + is_finished):
        before, after = word[:place], word[place:]
        for meant in _LETTERS:
            is_double = meant in (before[-1:], after[:1])
            yield before + meant + after, (_UNDOUBLED if is_double else _LEFT_OUT) * (1 if place else _FIRST)
        if before and after and "'" not in word:
            yield f"{before}'{after}", _NO_APOSTROPHE


def _replaced(meant: str, typed: str) -> float:
    """P(typed | meant) of one letter."""
    if typed in NEIGHBOURS[meant]:
        return _NEIGHBOUR
    return _VOWEL if meant in _VOWELS and typed in _VOWELS else _OTHER
