"""Cases of `superdraft lab eval infill`: gaps in source code and their original text."""

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from superdraft.evaluation.cases.prompts import Prompt, checked, read_rows
from superdraft.server.errors import CommandError

KINDS = ("indent", "mid", "word")
"""Places of the cursor: after the indentation of a new line, between two tokens of a line, or inside a word."""

MIN_CHARACTERS, MAX_CHARACTERS = 10, 80
LINES_PER_FILE = 2
SUFFIXES = frozenset((".py", ".c", ".cc", ".cpp", ".cs", ".go", ".h", ".hpp", ".java", ".js", ".jsx")) | frozenset(
    (".kt", ".lua", ".php", ".rb", ".rs", ".scala", ".sh", ".swift", ".ts", ".tsx")
)
_MAX_FILE_CHARACTERS = 100_000
_SKIPPED_FOLDERS = frozenset(("node_modules", "__pycache__", "venv", "site-packages", "build", "dist"))
_COMMENTS = ("#", "//", "/*", "*", "--", '"""', "'''")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_LONG_NAME = re.compile(r"[^\W\d]\w{3,}")


def read_cases(path: Path, limit: int | None = None) -> list[Prompt]:
    """Cases of a file of JSON lines with `prefix`, `suffix` and `reference`, and optionally `id` and `kind`.

    The reference is the rest of the cursor's line, the suffix all after it, including the line break.

    Raises:
        CommandError: the file cannot be read or is empty, a line lacks a field, or two cases have the same id.
    """

    def parse(path: Path, number: int, row: dict[str, Any]) -> Prompt:
        prefix, reference, suffix = texts = [row[name] for name in ("prefix", "reference", "suffix")]
        if not all(isinstance(text, str) for text in texts) or not reference.strip():
            raise ValueError("reference")
        name, kind = str(row.get("id", f"{path.stem}-{number}")), str(row.get("kind", path.stem))
        return Prompt(name, kind, prefix, reference, is_mid_word=True, suffix=suffix)

    return checked(read_rows([path], parse, limit), "cases")


def with_window(case: Prompt, num_before: int, num_after: int) -> Prompt:
    """The case with fewer lines around the cursor's line: editors send a window, not the whole file."""
    before = case.text.split("\n")[-(num_before + 1) :]
    after = case.suffix.split("\n")[: num_after + 1]  # the first one is the rest of the cursor's line
    return replace(case, text="\n".join(before), suffix="\n".join(after))


def parse_window(text: str | None) -> tuple[int, int] | None:
    """Numbers of lines before and after the cursor's line, from `BEFORE,AFTER`; None for None.

    Raises:
        CommandError: the text has another form.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+),(\d+)", text)
    if found is None:
        raise CommandError(f"--context-lines must be BEFORE,AFTER, two numbers of lines such as 50,20; got {text!r}.")
    return int(found[1]), int(found[2])


def chosen_cases(
    file: Path | None, source: Path | None, kind: str, limit: int | None, seed: int, window: tuple[int, int] | None
) -> list[Prompt]:
    """The cases of a file, or cases made from source code.

    Args:
        file: file of cases; None: make them from source code.
        source: folder of source code; None: read them from the file.
        kind: kind of the cases from source code.
        limit: maximum number of cases; None: all of the file, 100 from source code.
        seed: seed of the cases from source code.
        window: numbers of lines to keep before and after the cursor's line; None: all.

    Raises:
        CommandError: neither or both of file and source are given, or there are no cases.
    """
    if (file is None) == (source is None):
        raise CommandError("Name either a file of cases (--cases FILE) or source code (--from-source FOLDER).")
    if source is not None:
        cases = cases_from_source(source, kind, limit or 100, seed)
    else:
        assert file is not None
        cases = read_cases(file, limit)
    return cases if window is None else [with_window(case, *window) for case in cases]


def write_cases(path: Path, cases: Sequence[Prompt]) -> None:
    """Write a file that `read_cases` reads."""
    names = ("id", "kind", "prefix", "reference", "suffix")
    rows = ((case.id, case.domain, case.text, case.reference, case.suffix) for case in cases)
    path.write_text("".join(f"{json.dumps(dict(zip(names, row, strict=True)))}\n" for row in rows), encoding="utf-8")


def cases_from_source(folder: Path, kind: str, limit: int, seed: int) -> list[Prompt]:
    """Cases from the source files below a folder; the same for the same files and seed.

    Lines have 10 to 80 characters without their indentation and are not comments. At most two are taken per file.

    Args:
        folder: folder of source code.
        kind: one of `KINDS`.
        limit: maximum number of cases.
        seed: seed of the choice of files, lines and places.

    Raises:
        CommandError: there is no such folder or kind, or no suitable line.
    """
    if kind not in KINDS:
        raise CommandError(f"--kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if not folder.is_dir():
        raise CommandError(f"--from-source {folder} is not a folder.")
    chance = random.Random(f"{seed} {kind}")  # noqa: S311 (the same cases in every run)
    files = sorted(_source_files(folder))
    chance.shuffle(files)
    cases: list[Prompt] = []
    for file in files:
        cases += _cases_of_file(file.relative_to(folder).as_posix(), _read(file), kind, chance)
        if len(cases) >= limit:
            return cases[:limit]
    if not cases:
        endings = ", ".join(sorted(SUFFIXES))
        raise CommandError(
            f"--from-source {folder} holds no line of code to complete; only files that end in {endings} are read."
        )
    return cases


def _source_files(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        parts = file.relative_to(folder).parts
        is_hidden = any(part.startswith(".") or part in _SKIPPED_FOLDERS for part in parts)
        if file.suffix in SUFFIXES and not is_hidden and file.is_file():
            yield file


def _read(file: Path) -> str:
    """A file's text with plain line ends; "" if it is too large or not UTF-8."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    return text if len(text) <= _MAX_FILE_CHARACTERS else ""


def _cases_of_file(name: str, text: str, kind: str, chance: random.Random) -> list[Prompt]:
    lines = text.split("\n")
    numbers = [number for number, line in enumerate(lines) if number > 0 and _is_code(line)]
    chance.shuffle(numbers)
    cases: list[Prompt] = []
    for number in numbers:
        column = _PLACES[kind](lines[number], chance)
        if column is None:
            continue
        line, before, after = lines[number], "\n".join(lines[:number]), "\n".join(lines[number + 1 :])
        label, prefix, reference = f"{kind}:{name}:{number + 1}", f"{before}\n{line[:column]}", line[column:].rstrip()
        cases.append(Prompt(label, kind, prefix, reference, is_mid_word=True, suffix=f"\n{after}"))
        if len(cases) == LINES_PER_FILE:
            break
    return cases


def _is_code(line: str) -> bool:
    content = line.strip()
    return MIN_CHARACTERS <= len(content) <= MAX_CHARACTERS and not content.startswith(_COMMENTS)


def _at_indent(line: str, _: random.Random) -> int | None:
    """After the indentation; None for a line without one."""
    return (len(line) - len(line.lstrip())) or None


def _at_border(line: str, chance: random.Random) -> int | None:
    """The beginning of a token in the middle half of the line."""
    content = len(line.strip())
    start = len(line) - len(line.lstrip())
    first, last = start + content // 4, start + content * 3 // 4
    borders = [found.start() for found in _TOKEN.finditer(line) if first <= found.start() <= last]
    borders = [column for column in borders if column > start]
    return chance.choice(borders) if borders else None


def _in_word(line: str, chance: random.Random) -> int | None:
    """Inside a name of at least four characters: at least two are typed, and at least one is left."""
    words = list(_LONG_NAME.finditer(line))
    if not words:
        return None
    word = chance.choice(words)
    return chance.randint(word.start() + 2, word.end() - 1)


_PLACES: dict[str, Callable[[str, random.Random], int | None]] = {
    "indent": _at_indent,
    "mid": _at_border,
    "word": _in_word,
}
