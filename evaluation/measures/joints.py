"""Broken joints: words at the cursor that a draft completes to something that is not a word.

The *joint* is the word at the cursor: the letters that the prompt ends with and those that the draft begins with. It
is broken if it is not a word: "appointme" before the draft " at noon" is broken, and before "nted" too. A draft that
ends inside the joint is judged by whether a word begins like the joint.

Joints that no word list could judge do not count as broken: those with a digit, an underscore or a capital letter
(numbers, names), those that touch characters other than white space, punctuation and hyphens (code, addresses), and
all of a domain named "code".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from superdraft.decoding.text.words import is_word_character, last_word_start
from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.cases.word_list import WordList

CODE_DOMAINS = ("code",)
_APOSTROPHES = "'\u2019"
_BEFORE = frozenset(" \t\n\r-\u2010\u2011\u2013\u2014\"'\u201c\u2018([*\u2026")
_BEHIND = frozenset(" \t\n\r-\u2010\u2011\u2013\u2014\"'\u201d\u2019)]*\u2026.,;:!?")
_LETTERS = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*['\u2019]?")
_INSIDE = ".:/@"  # followed by a letter: addresses, "e.g"


@dataclass(frozen=True, slots=True)
class Joint:
    """The word at the cursor.

    Attributes:
        word: the end of the text and the beginning of the draft.
        is_open: the draft ends inside the word, which may continue.
    """

    word: str
    is_open: bool


def joint_of(text: str, draft: str) -> Joint | None:
    """The joint of a text and a draft; None if there is none or no word list could judge it."""
    start = last_word_start(text, _APOSTROPHES)
    if start == len(text) or not draft:
        return None
    end = _word_end(draft)
    word, behind = text[start:] + draft[:end], draft[end:]
    before = text[start - 1] if start else " "
    touches_code = before not in _BEFORE or (behind and behind[0] not in _BEHIND)
    is_address = behind[:1] in tuple(_INSIDE) and behind[1:2].isalnum()
    if touches_code or is_address or not _LETTERS.fullmatch(word) or word != word.lower():
        return None
    return Joint(word.rstrip(_APOSTROPHES), is_open=not behind)


def _word_end(draft: str) -> int:
    """The end of the word that a draft begins with. An apostrophe belongs to the word if a letter follows."""
    end = 0
    while end < len(draft):
        is_inner = draft[end] in _APOSTROPHES and draft[end + 1 : end + 2].isalpha()
        if not is_word_character(draft[end]) and not is_inner:
            break
        end += 1
    return end


def is_broken(prompt: Prompt, draft: str, words: WordList) -> bool:
    """Whether a draft's joint is broken."""
    joint = None if prompt.domain in CODE_DOMAINS else joint_of(prompt.text, draft)
    if joint is None or joint.word in words:
        return False
    return not (joint.is_open and words.has_start(joint.word))


@dataclass(frozen=True, slots=True)
class JointCount:
    """Counts of broken joints in one request's drafts."""

    is_first_broken: bool
    num_broken: int
    num_drafts: int


def count_joints(prompt: Prompt, drafts: Sequence[str], words: WordList) -> JointCount:
    """Judge all drafts of a prompt, best first."""
    broken = [is_broken(prompt, draft, words) for draft in drafts]
    return JointCount(any(broken[:1]), sum(broken), len(drafts))
