r"""Cutting of drafts for a gap, so that they do not repeat the text after it.

`\r\n` and `\n` count as the same line break. A *closer* is a closing bracket, quote or punctuation mark. Editors insert
closing brackets automatically, so a draft may have several lines even if closers follow the cursor.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from superdraft.decoding.text.fim import Gap
from superdraft.decoding.text.tidying import without_bare_fence

LineEnd = Literal["\n", "\r\n"]

_OPENING = {")": "(", "]": "[", "}": "{"}
_QUOTES = "\"'`"
_CLOSERS = ")]}" + _QUOTES + ";:, \t"
_STOPS = ".!?"
_MARKS = _STOPS + ",;:"
_NEAR = 4000
"""Characters on each side of the cursor that count. A draft repeats what is near, and a line may have a megabyte,
which would be searched for every draft."""

_MAX_CUTS = 16
"""A draft that still ends as the text after it begins, after so many cuts, is that text over and over."""

_MIN_SAME = 4
"""Minimum length, without blanks, of the rest of the cursor's line for it to count as repeated when the draft continues
after it. For the beginning of a word the minimum is one less."""


def cut_for_gap(draft: str, gap: Gap) -> str:
    """The part of a draft to display: a prefix of it, which may be empty.

    It ends

    - at its first line break, if anything other than closers follows the cursor on the same line;
    - where it repeats the rest of the cursor's line, whatever the width of its blanks, or, if that is blank, the next
      line that is not blank;
    - where its end repeats the beginning of the text after the gap;
    - before a closing bracket or quote that already follows the gap, unless it closes one that the draft itself
      opened: before ")", "foo)" becomes "foo", but "f(x) + y" stays;
    - before a code fence that belongs to no other one.
    """
    text, suffix = without_bare_fence(_with_line_feeds(draft), gap.prefix), _near_suffix(gap)
    before = gap.prefix[-_NEAR:]
    line = before[before.rfind("\n") + 1 :]
    rest = suffix.partition("\n")[0]
    if has_text_after(gap):
        text = text.partition("\n")[0]
    text = text.rstrip("\r")  # half of a line break
    num_cuts = 0
    while (end := _end(text, line, rest, suffix)) < len(text):
        num_cuts += 1
        text = text[:end].rstrip("\r") if num_cuts <= _MAX_CUTS else ""
    return draft[: _length_in(draft, len(text))]


def has_text_after(gap: Gap) -> bool:
    """Whether anything other than closers follows the cursor on its line. Drafts then have one line."""
    return bool(_rest_of_line(gap).strip(_CLOSERS))


def joins(draft: str, gap: Gap) -> bool:
    """Whether a draft reads on into the rest of the cursor's line, judged by the characters where the two meet.

    It does not if it is blank, or if there would be two words in one, two spaces or two marks in a row, a space before
    a mark, or a small letter after a full stop.
    """
    rest = _rest_of_line(gap)
    if not draft.strip() or not rest:
        return bool(draft.strip())
    last, first = draft[-1], rest[0]
    if _is_word(last) and _is_word(first):
        return False
    if first in _MARKS:
        return not last.isspace() and last not in _MARKS
    if last.isspace() and first.isspace():
        return False
    return not (draft.rstrip()[-1] in _STOPS and rest.lstrip()[:1].islower())


def line_end_of(gap: Gap) -> LineEnd:
    """The kind of line end that the gap's text has nearest to the cursor."""
    for text, at in ((gap.prefix, gap.prefix.rfind("\n")), (gap.suffix, gap.suffix.find("\n"))):
        if at >= 0:
            return "\r\n" if text[:at].endswith("\r") else "\n"
    return "\n"


def with_line_ends(text: str, line_end: LineEnd) -> str:
    """`text` with all line ends replaced by `line_end`."""
    text = _with_line_feeds(text)
    return text if line_end == "\n" else text.replace("\n", line_end)


def _rest_of_line(gap: Gap) -> str:
    return _near_suffix(gap).partition("\n")[0]


def _near_suffix(gap: Gap) -> str:
    return _with_line_feeds(gap.suffix[:_NEAR])


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n")


def _length_in(draft: str, num: int) -> int:
    r"""Length of the beginning of `draft` that has `num` characters if `\r\n` counts as one."""
    position = 0
    for _ in range(num):
        position += 2 if draft.startswith("\r\n", position) else 1
    return position


def _end(text: str, line: str, rest: str, suffix: str) -> int:
    """Index where the draft first repeats the suffix; its length if it does not.

    Args:
        text: the draft.
        line: the text before the cursor on its line.
        rest: the text after the cursor on its line.
        suffix: all text after the cursor.
    """
    next_line = _first_line(suffix)
    own = _own_closers(text, line, next_line)
    ends = [len(text), *_overlapping_ends(text, suffix, own)]
    if rest.strip():
        ends += [*_repeated_rests(text, rest.rstrip(), own), *_taken_closers(text, line, rest, own)]
    elif next_line:
        ends += _repeated_lines(text, line, next_line, own)
    return min(ends)


def _first_line(text: str) -> str:
    """The first line that is not blank, without blanks at its end; "" if all lines are blank."""
    return next((line.rstrip() for line in text.split("\n") if line.strip()), "")


def _own_closers(text: str, line: str, next_line: str) -> set[int]:
    """Indices of brackets in the draft that close one opened in the draft or before the cursor on its line.

    The outermost brackets that are open at the cursor may be closed by the text after it; these do not count.
    """
    stack: list[str] = []
    _match_brackets(line, stack)
    matched = _match_brackets(next_line, [])
    closed = Counter(
        _OPENING[char] for index, char in enumerate(next_line) if char in _OPENING and index not in matched
    )
    inner = []
    for bracket in stack:
        if closed[bracket]:
            closed[bracket] -= 1
        else:
            inner.append(bracket)
    return _match_brackets(text, inner)


def _match_brackets(text: str, stack: list[str]) -> set[int]:
    """Indices of brackets in `text` that close one on the stack or one in `text`; open brackets stay on the stack."""
    matched = set()
    for index, char in enumerate(text):
        if char in _OPENING.values():
            stack.append(char)
        elif char in _OPENING and stack and stack[-1] == _OPENING[char]:
            stack.pop()
            matched.add(index)
    return matched


def _overlapping_ends(text: str, suffix: str, own: set[int]) -> Iterator[int]:
    """Indices from which on the draft equals the beginning of the suffix."""
    word = _first_word(suffix)
    for start in range(max(0, len(text) - len(suffix)), len(text)):
        end = text[start:]
        if not suffix.startswith(end) or not _begins_a_word(text, start, word):
            continue
        if len(text) - len(end.lstrip()) in own:
            continue
        is_all_in_a_word = start == 0 and _is_word(text[0])
        if is_all_in_a_word or _says_enough(end, suffix):
            yield start


def _begins_a_word(text: str, start: int, word: str) -> bool:
    """Whether a repetition may begin at `start`: not inside a word, unless `word`, its whole first one, follows."""
    if start == 0 or not (_is_word(text[start - 1]) and _is_word(text[start])):
        return True
    end = start + len(word)
    return len(word) > 1 and text.startswith(word, start) and not _is_word(text[end : end + 1])


def _says_enough(end: str, suffix: str) -> bool:
    """Whether a repeated end is long enough not to be a letter or two with which the suffix happens to begin."""
    if "\n" in end or not _is_word(end[-1]) or not _is_word(suffix[len(end) : len(end) + 1]):
        return True
    last = _first_word(end[:-_MIN_SAME:-1])
    return len(last) >= _MIN_SAME - 1 or bool(end[: len(end) - len(last)].strip())


def _repeated_rests(text: str, rest: str, own: set[int]) -> Iterator[int]:
    """Indices where the draft repeats the rest of the cursor's line."""
    # Models often write another number of blanks, for instance between columns and before a comment.
    same, word = re.compile("[ \\t]+".join(map(re.escape, re.split("[ \\t]+", rest)))), _first_word(rest)
    for start in range(len(text)):
        match = same.match(text, start)
        if match is None or not _begins_a_word(text, start, word):
            continue
        if match.end() - len(match[0].lstrip()) in own:
            continue
        after = text[match.end() :]
        is_long = start == 0 or len(rest.strip()) >= _MIN_SAME
        splits_word = _is_word(rest[-1]) and _is_word(after[:1])
        if not after.partition("\n")[0].strip() or (rest.strip(_CLOSERS) and is_long and not splits_word):
            yield start


def _taken_closers(text: str, line: str, rest: str, own: set[int]) -> Iterator[int]:
    """Indices in the draft of the closing bracket or quote with which the rest of the cursor's line begins.

    That a quote closes is known if nothing but closers follows it, or if one was opened on the line before the cursor.
    """
    closer = rest.lstrip()[0]
    if closer in _OPENING:
        yield from (index for index, char in enumerate(text) if char == closer and index not in own)
    elif closer in _QUOTES and (not rest.strip(_CLOSERS) or line.count(closer) % 2):
        first_line = text.partition("\n")[0]
        if first_line.count(closer) % 2:  # the unpaired quote closes the string that the cursor is in
            yield first_line.rindex(closer)


def _repeated_lines(text: str, line: str, next_line: str, own: set[int]) -> Iterator[int]:
    """Indices where a line of the draft repeats the next line after the cursor; the last line may be incomplete."""
    start = 0
    for content in text.split("\n"):
        end = start + len(content)
        whole = (line if start == 0 else "") + content
        first = end - len(content.lstrip())
        is_same = whole.rstrip() == next_line
        is_beginning = end == len(text) and next_line.startswith(whole)
        if content.strip() and (is_same or is_beginning) and (start > 0 or not line.strip()) and first not in own:
            yield len(text[:start].rstrip())
        start = end + 1


def _first_word(text: str) -> str:
    """The letters, digits and underscores at the beginning of `text`."""
    return text[: next((index for index, char in enumerate(text) if not _is_word(char)), len(text))]


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"
