r"""Tidying of drafts for display: what a person should never see is cut off, or the whole draft is dropped.

Like trimming, tidying only cuts off the end. These are cut, with all that follows:

- *an unfinished end* of a draft that a limit ended. That is its last line, if it has at most two words, begins at the
  margin and has a whole line before it; else its last word, unless this is a single token and no number, since most
  such words are whole;
- *a doubled word*, "the the", *a space before a full stop or a comma*, and *a code fence* that closes none;
- at the end of a draft that was about to continue: *a preposition or an article*, *an opening bracket or quotation
  mark*, and *one or two words after the end of a sentence*, such as the next sentence's "I".

What is then punctuation only, or nothing, is dropped. The rules about prepositions and articles are for English. They
apply where the text around has words that only English has (`is_english`); in other languages they change nothing.
"""

import re
import unicodedata

from superdraft.decoding.text.trimming import sentence_ends, without_last_word

ARTICLES = "a an the"
PREPOSITIONS = (
    "about against among as at between by during for from in into of on onto per than through to toward towards under "
    "until upon via with within without"
)
"""Without those that often stand at the end of a sentence: up, out, off, over, down, back, after, before."""

ENGLISH = (
    "and are been can't could did didn't does doesn't don't from he he's how i'm i've it's its let's please she "
    "should thank thanks that that's the their there they this we're were what when where which who with would you "
    "your you're"
)
"""Frequent words of English that are rare in other languages."""

_BEFORE = 400
"""Characters before the cursor that show the language: two or three sentences."""

_FEW = 2
"""Words of a line or a sentence that has only begun."""

_ENDS_OPEN = "|".join([*ARTICLES.split(), *PREPOSITIONS.split()])
_LAST_OPEN_WORD = re.compile(rf"(?<=\s)(?:{_ENDS_OPEN})\Z", re.IGNORECASE)
_LAST_OPENER = re.compile("(?<=\\s)[\"'`(\\[\u00ab\u2018\u201c]+\\Z")
_DOUBLED = re.compile(rf"\b({_ENDS_OPEN})[^\S\n]+(\1)\b", re.IGNORECASE)
_SPACED_STOP = re.compile(r"(?<=\w)([^\S\n]+[.,])(?=\s|\Z)")
_FENCE = re.compile(r"\n[^\S\n]*```")
_BARE_FENCE = re.compile(r"\n[^\S\n]*```[^\S\n]*(?=\n|\Z)")
_WORD = re.compile(r"[\w'\u2019]+")
_MARKS = frozenset({"Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk"})
"""Unicode categories of punctuation, and of signs other than emoji."""
_ENGLISH = frozenset(ENGLISH.split())


def tidy(draft: str, before: str = "", last_token: str | None = None) -> str:
    """The part of a draft to display: a prefix of it, empty if nothing in it is worth a look.

    Args:
        draft: the draft's text.
        before: the text before the cursor, or its end.
        last_token: the text of the draft's last token if a limit ended the draft; None if it ends where it should.
    """
    fence = _fence_start(_FENCE, draft, before)
    before = before[-_BEFORE:]
    in_english = is_english(before + draft)
    text = draft[: min(_first_fault(draft, before, in_english=in_english), fence)]
    goes_on = last_token is not None or len(text) < len(draft)
    if last_token is not None and text == draft:
        text, goes_on = _without_unfinished_end(text, last_token)
        fault = _first_fault(text, before, in_english=in_english)  # " a .b" has none, but its beginning " a ." has
        text, goes_on = text[:fault], goes_on or fault < len(text)
    if goes_on:
        edge = before[-1:] or " "  # it shows whether the draft begins a word
        text = _without_open_end(edge + text, in_english=in_english)[1:]
    text = text.rstrip()
    return "" if is_punctuation(text) else text


def without_bare_fence(draft: str, before: str = "") -> str:
    """The part of a draft before a code fence without a language, unless there is a fence in the text before it.

    Models that are trained for chat put one behind the code in a file, and continue with prose.
    """
    return draft[: _fence_start(_BARE_FENCE, draft, before)]


def _fence_start(pattern: re.Pattern[str], draft: str, before: str) -> int:
    """Where a fence ends the draft; its length if none does, or if there is a fence in the text before it."""
    if "```" in before:
        return len(draft)
    edge = "\n" if before.rstrip(" \t").endswith("\n") else ""  # the draft itself begins a line
    fence = pattern.search(edge + draft)
    return len(draft) if fence is None else max(0, fence.start() - len(edge))


def is_english(text: str) -> bool:
    """Whether a text has a frequent word that only English has."""
    return any(word.replace("\u2019", "'") in _ENGLISH for word in _WORD.findall(text.lower()))


def is_punctuation(text: str) -> bool:
    """Whether a text has nothing but white space, punctuation and signs. Emoji count as words."""
    return all(char.isspace() or unicodedata.category(char) in _MARKS for char in text)


def _first_fault(draft: str, before: str, *, in_english: bool) -> int:
    """Where the draft, in its place behind the text before it, first has a doubled word or a spaced full stop."""
    text, start = before + draft, len(before)
    patterns = ((_DOUBLED, 2), (_SPACED_STOP, 1)) if in_english else ((_SPACED_STOP, 1),)
    faults = [
        max(0, match.start(group) - start)
        for pattern, group in patterns
        for match in pattern.finditer(text)
        if match.end() > start
    ]
    return min(faults, default=len(draft))


def _without_unfinished_end(text: str, last_token: str) -> tuple[str, bool]:
    """A draft that a limit ended, without its unfinished line or word, and whether its last line is still open."""
    lines, _, last_line = text.rpartition("\n")
    if lines.strip() and len(last_line.split()) <= _FEW and not last_line[:1].isspace():
        return lines, False
    kept = without_last_word(text)
    word = text[len(kept) :]
    if word and (word != last_token.strip() or word[0].isdigit()):
        return kept, True
    return text, bool(last_line.strip())


def _without_open_end(text: str, *, in_english: bool) -> str:
    """A text without the words and signs at its end that must be followed by others."""
    while True:
        kept = _LAST_OPENER.sub("", text.rstrip())
        if in_english:
            kept = _LAST_OPEN_WORD.sub("", kept)
        kept = _without_begun_sentence(kept).rstrip()
        if kept == text:
            return text
        text = kept


def _without_begun_sentence(text: str) -> str:
    """A text without the one or two words after the end of its last sentence."""
    end = max((end for end in sentence_ends(text) if text[end:].strip()), default=0)
    return text[:end] if end and len(text[end:].split()) <= _FEW and not sentence_ends(text[end:]) else text
