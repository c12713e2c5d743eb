"""Prompts and questions from files of JSON lines."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, TypeVar

from superdraft.server.errors import CommandError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text that was cut off, and its original continuation.

    Attributes:
        id: name, unique within a run.
        domain: kind of text.
        text: the text before the cut.
        reference: the text after the cut, without the white space at the cut.
        is_mid_word: the cut is inside a word, or a gap: the reference follows as it is.
        suffix: the text after the gap.
    """

    id: str
    domain: str
    text: str
    reference: str
    is_mid_word: bool = False
    suffix: str = ""

    @property
    def continuation(self) -> str:
        """The reference, with a space before it if the text does not end with one: a perfect draft begins like this."""
        glued = self.is_mid_word or self.text[-1:].isspace() or self.reference[:1].isspace()
        return self.reference if glued else f" {self.reference}"


@dataclass(frozen=True, slots=True)
class Question:
    """A question and all answers that count as right."""

    id: str
    text: str
    answers: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The zero-shot prompt in the paper's form."""
        return f"Question: {self.text}\nAnswer:"


Row = TypeVar("Row", Prompt, Question)


def read_prompts(paths: Sequence[Path], limit: int | None = None) -> list[Prompt]:
    """Prompts of files with the fields `prompt` and `reference`, and optionally `id`, `domain` and `typed` (mid-word).

    Args:
        paths: the files. The default of `domain` is the name of the file.
        limit: maximum number of prompts; they are taken from the files in turns.

    Raises:
        CommandError: a file cannot be read, a line lacks a field, two prompts have the same id, or there are none.
    """

    def parse(path: Path, number: int, row: dict[str, Any]) -> Prompt:
        return Prompt(
            id=str(row.get("id", f"{path.stem}-{number}")),
            domain=str(row.get("domain", path.stem)),
            text=_text(row, "prompt"),
            reference=_text(row, "reference"),
            is_mid_word="typed" in row,
        )

    return checked(read_rows(paths, parse, limit), "prompts")


def read_questions(paths: Sequence[Path], limit: int | None = None) -> list[Question]:
    """Questions of files with the fields `question` and `answers`. Limit and errors are those of `read_prompts`."""

    def parse(path: Path, number: int, row: dict[str, Any]) -> Question:
        answers = tuple(str(answer) for answer in row["answers"])
        return Question(str(row.get("id", f"{path.stem}-{number}")), _text(row, "question"), answers)

    return checked(read_rows(paths, parse, limit), "questions")


def read_rows(paths: Sequence[Path], parse: Callable[[Path, int, dict[str, Any]], T], limit: int | None) -> list[T]:
    """The parsed lines of all files, one line per file in turn."""
    files = [list(_rows(path, parse)) for path in paths]
    missing = object()
    in_turns = chain.from_iterable(zip_longest(*files, fillvalue=missing))
    return list(islice((row for row in in_turns if row is not missing), limit))  # type: ignore[misc]  # not the filler


def _rows(path: Path, parse: Callable[[Path, int, dict[str, Any]], T]) -> Iterator[T]:
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield parse(path, number, json.loads(line))
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}.") from None
    except KeyError as error:
        raise CommandError(f"{path}, line {number}: the field {error.args[0]} is missing.") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise CommandError(
            f"{path}, line {number}: not a JSON line of the expected form ({type(error).__name__})."
        ) from None


def _text(row: dict[str, Any], name: str) -> str:
    """A text field that has at least one word."""
    text = row[name]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(name)
    return text


def checked(rows: list[Row], what: str) -> list[Row]:
    """The same rows, which are called `what` in errors.

    Raises:
        CommandError: there are none, or two have the same id.
    """
    if not rows:
        raise CommandError(f"The files hold no {what}.")
    name, count = Counter(row.id for row in rows).most_common(1)[0]
    if count > 1:
        raise CommandError(f"Two lines have the id {name!r}. Give each its own id, or name each file once.")
    return rows
