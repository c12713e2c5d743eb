"""`superdraft lab eval typos`: what a server suggests after a typo, and what it does to texts without one."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from superdraft.client.wire import DraftsOptions
from superdraft.decoding.text.typos import NEIGHBOURS, Corrections, TypedWord
from superdraft.evaluation import options
from superdraft.evaluation.cases.prompts import Prompt, read_prompts
from superdraft.evaluation.decoders.decoders import BACKSPACE
from superdraft.evaluation.decoders.peers import SUPERDRAFT, parse_peer, served_contender
from superdraft.evaluation.reports.figures import Figures, means
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.reports.report import write_report
from superdraft.evaluation.runs.quality import measured
from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
from superdraft.server.errors import CommandError

CLEAN, CURRENT, BEFORE = "clean", "current word", "word before"
EDITS = ("replaced", "swapped", "left out", "doubled", "added")
KINDS = (CLEAN, *(f"{where}: {edit}" for where in (CURRENT, BEFORE) for edit in EDITS), f"{BEFORE}: misspelt")
ASKED: dict[str, DraftsOptions] = {"off": {}, "on": {"corrections": "on"}}
COLUMNS = ("right_first", "right_any", "corrected_first", "forward_rows")
NUM_DRAFTS, MIN_LETTERS, LONG_WORD = 3, 3, 7
_WORD = re.compile(r"[^\W\d_]+\Z")
_ENTRY = re.compile(r"([a-z]+)->([a-z]+)\s*\Z")


def main(
    prompts: options.Files = None,
    more: options.MoreFiles = None,
    peer: Annotated[str, typer.Option("--peer", help="Running server, as superdraft=URL.")] = "",
    misspellings: Annotated[
        Path | None, typer.Option(help="Dictionary of codespell: lines such as tomorow->tomorrow.")
    ] = None,
    max_tokens: options.MaxTokens = 8,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    output: options.Output = None,
) -> None:
    """Measure drafts after typos: each prompt as it is, and with one of each kind in the word at its end."""
    server, key = parse_peer(peer, (SUPERDRAFT,)), read_key(api_key, api_key_file)
    files, folder = options.all_files(prompts, more), output or Path("eval-typos")
    known = {} if misspellings is None else read_misspellings(misspellings)
    cases = list(cases_of(read_prompts(files, limit), known, seed))
    groups = {kind: own for kind in KINDS if (own := [case for case in cases if case.domain.startswith(kind)])}
    with ExitStack() as stack:
        contenders = [
            replace(stack.enter_context(served_contender(server, key, NUM_DRAFTS, max_tokens, fields)), name=name)
            for name, fields in ASKED.items()
        ]
        results = measured(contenders, groups, folder / "records", figures=typo_figures)
    write_report(folder, "typos", results, COLUMNS, {"files": [file.name for file in files], "seed": seed}, Console())


def cases_of(prompts: Sequence[Prompt], misspellings: Mapping[str, str], seed: int) -> Iterator[Prompt]:
    """Each prompt as it is, and with one typo of each kind; its reference is the word that was meant.

    A prompt that is cut inside a word gets typos there, any other one in its last word, which a blank then follows. The
    domain is the kind and the length of what is typed of the word.
    """
    rng = random.Random(seed)  # noqa: S311 (no secret)
    for prompt in prompts:
        typed = _last_word(prompt.text)
        where, blank = (CURRENT, "") if prompt.is_mid_word else (BEFORE, " ")
        front = prompt.text[: len(prompt.text) - len(typed)]
        rest = re.match(r"\w*", prompt.reference)[0] if prompt.is_mid_word else ""  # type: ignore[index]
        meant = typed + rest
        length = "short" if len(typed) < LONG_WORD else "long"
        follows = meant if prompt.is_mid_word else f"{typed} {(prompt.reference.split() or [''])[0]}"
        yield Prompt(f"{prompt.id} {CLEAN}", f"{CLEAN}, {where}", prompt.text + blank, front + follows)
        if len(typed) < MIN_LETTERS or not (typed.isascii() and typed[1:].islower()):
            continue
        for edit in EDITS:
            wrong = mistyped(typed, edit, rng, is_finished=bool(blank))
            if wrong is not None:
                kind = f"{where}: {edit}"
                yield Prompt(f"{prompt.id} {edit}", f"{kind}, {length}", front + wrong + blank, front + meant)
        if blank and typed in misspellings:
            kind = f"{where}: misspelt"
            wrong = misspellings[typed]
            yield Prompt(f"{prompt.id} misspelt", f"{kind}, {length}", front + wrong + blank, front + meant)


def mistyped(word: str, edit: str, rng: random.Random, *, is_finished: bool) -> str | None:
    """A word with one typo of a kind, not in its first letter; None if it has no place for it."""
    at = rng.randrange(1, len(word))
    near = sorted(NEIGHBOURS.get(word[at].lower(), ()))
    before, after = word[:at], word[at + 1 :]
    match edit:
        case "replaced" if near:
            return before + rng.choice(near) + after
        case "swapped" if after and after[0] != word[at]:
            return before + after[0] + word[at] + after[1:]
        case "left out" if after or is_finished:
            return before + after
        case "doubled":
            return before + 2 * word[at] + after
        case "added" if near:
            return before + rng.choice(near) + word[at:]
    return None


def read_misspellings(path: Path) -> dict[str, str]:
    """One misspelling of each word of a dictionary of codespell: the first that is one edit away.

    Raises:
        CommandError: the file cannot be read, or has no line such as `tomorow->tomorrow`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} cannot be read: {error}.") from None
    found: dict[str, str] = {}
    for wrong, meant in (entry.groups() for entry in map(_ENTRY.match, lines) if entry):
        if meant not in found and len(wrong) >= MIN_LETTERS and _is_one_edit(wrong, meant):
            found[meant] = wrong
    if not found:
        raise CommandError(f"{path} has no line such as tomorow->tomorrow.")
    return found


def _is_one_edit(wrong: str, meant: str) -> bool:
    return f" {meant}".encode() in Corrections.of(TypedWord(wrong, " ", is_finished=True)).meant


def typo_figures(records: Sequence[PromptRecord], cases: Sequence[Prompt], _: int) -> Figures:
    """Whether the first draft, and any draft, gives the text that was meant; whether the first one corrects; rows."""
    rows = []
    for record, case in zip(records, cases, strict=True):
        right = [_is_right(written(case.text, text), case.reference) for text in record.texts]
        found = {
            "right_first": float(right[:1] == [True]),
            "right_any": float(any(right)),
            "corrected_first": float(any(text.startswith(BACKSPACE) for text in record.texts[:1])),
            "forward_rows": float(record.forward_rows or 0),
        }
        rows.append(found)
    return means(rows)


def written(text: str, draft: str) -> str:
    """The text after a draft was accepted, which may begin with backspaces."""
    rest = draft.lstrip(BACKSPACE)
    return text[: len(text) - (len(draft) - len(rest))] + rest


def _is_right(text: str, wanted: str) -> bool:
    return text.startswith(wanted) and not text[len(wanted) : len(wanted) + 1].isalnum()


def _last_word(text: str) -> str:
    found = _WORD.search(text)
    return "" if found is None else found[0]
