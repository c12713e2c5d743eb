"""`superdraft lab eval texts`: drafts of everyday texts by several decoders side by side, for people to read."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from superdraft.decoding.loading.catalogue import DEFAULT_MODEL
from superdraft.decoding.method.selection import RULES
from superdraft.evaluation import options
from superdraft.evaluation.cases.prompts import read_rows
from superdraft.evaluation.decoders.decoders import Ask, Contender, Decoded
from superdraft.evaluation.decoders.peers import SUPERDRAFT, parse_peer, served_contender
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.options import decoder_specs, progress_of
from superdraft.evaluation.reports.tables import markdown_table
from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
from superdraft.server.errors import CommandError

EVERYDAY = Path(__file__).with_name("everyday.jsonl")
NUM_DRAFTS, MAX_TOKENS = 3, 16  # the server's defaults
SHOWN_CHARACTERS = 60

# Spaces that would be invisible: at either end, next to another space, or next to a line break.
_HIDDEN_SPACE = re.compile(r"^ | $|(?<=[ \n\t]) | (?=[ \n\t])")
_MARK = re.compile(r"[!-/:-@\[-`{-~]")
_SIGNS = {code: chr(0x2400 + code) for code in range(ord(" "))} | {ord("\n"): "⏎", ord("\t"): "⇥"}


@dataclass(frozen=True, slots=True)
class EverydayText:
    """A text that a user has typed so far.

    Attributes:
        kind: kind of text; in the built-in file mail, chat, document or code.
        place: place of the cursor, such as "inside a word".
        text: everything before the cursor.
        is_short: the text has at most five words.
    """

    kind: str
    place: str
    text: str
    is_short: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """The drafts of one decoder.

    Attributes:
        name: name of the decoder.
        decoded: drafts of each text.
        has_probabilities: scores are logarithms of probabilities.
    """

    name: str
    decoded: tuple[Decoded, ...]
    has_probabilities: bool


def main(
    file: Annotated[
        Path,
        typer.Option("--texts", help="JSON lines with kind, place and text.", show_default="100 everyday texts"),
    ] = EVERYDAY,
    decoder: options.Decoders = options.SERVED,
    peer: options.Peers = None,
    seed: options.Seed = 0,
    ngram: options.Ngram = "auto",
    model: options.Model = DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Markdown file to write. If not set, standard output.")
    ] = None,
) -> None:
    """Show three drafts for each of many texts, decoders side by side, as Markdown tables for people to read."""
    peers = [parse_peer(text, (SUPERDRAFT,)) for text in peer or ()]
    shared = {"num_drafts": NUM_DRAFTS, "max_tokens": MAX_TOKENS}
    specs = decoder_specs(decoder, ngram, shared, [one.name for one in peers])
    key, console, texts = read_key(api_key, api_key_file), Console(), read_texts(file)
    with ExitStack() as stack:
        contenders = [stack.enter_context(served_contender(one, key, NUM_DRAFTS, MAX_TOKENS)) for one in peers]
        if specs:
            typed = [one.text for one in texts]
            workbench = Workbench(ModelChoice(model, dtype, device), typed, specs, seed=seed)
            contenders = [*workbench.contenders(specs), *contenders]
        advance = stack.enter_context(progress_of([one.name for one in contenders], len(texts)))
        columns = [_column(contender, texts, partial(advance, contender.name, 1)) for contender in contenders]
    tables = "\n".join(tables_of(texts, columns))
    if output is None:
        console.print(tables, markup=False, highlight=False, soft_wrap=True)
    else:
        output.write_text(tables + "\n", encoding="utf-8")
        console.print(f"{output} has the drafts of {len(texts)} texts.")


def _column(contender: Contender, texts: Sequence[EverydayText], done: Callable[[], None]) -> Column:
    """Request drafts for one text at a time, as a single user does."""
    decoded: list[Decoded] = []
    for number, one in enumerate(texts):
        decoded += contender.decoder.decode([Ask(one.text, str(number))])
        done()
    return Column(contender.name, tuple(decoded), scores_are_probabilities(contender))


def read_texts(path: Path) -> list[EverydayText]:
    """Texts of a file of JSON lines with `kind`, `place` and `text`, and optionally `short`.

    Raises:
        CommandError: the file cannot be read or is empty, or a line lacks a field.
    """

    def parse(_path: Path, _number: int, row: dict[str, Any]) -> EverydayText:
        kind, place, text = (row[name] for name in ("kind", "place", "text"))
        if not all(isinstance(value, str) for value in (kind, place, text)) or not text:
            raise ValueError(text)
        return EverydayText(kind, place, text, is_short=row.get("short") is True)

    texts = read_rows([path], parse, None)
    if not texts:
        raise CommandError(f"{path} holds no texts.")
    return texts


def scores_are_probabilities(contender: Contender) -> bool:
    """Whether exp(score) is the probability of a draft's first word.

    A running server does not say how it drafts; the default is assumed.
    """
    params: Mapping[str, Any] | None = contender.settings.get("params")
    return params is None or (
        params["strategy"] == "superposed" and RULES[params["selection"]].scores_are_probabilities
    )


def tables_of(texts: Sequence[EverydayText], columns: Sequence[Column]) -> list[str]:
    """The lines of a Markdown document: a table per kind of text, with rows numbered through all tables."""
    lines: list[str] = []
    for kind in dict.fromkeys(one.kind for one in texts):
        lines += ["", f"## {kind.capitalize()}", ""] if lines else [f"## {kind.capitalize()}", ""]
        head = ("", "text", *(column.name.replace("|", r"\|") for column in columns))
        rows = []
        for index, one in enumerate(texts):
            if one.kind == kind:
                cells = (drafts_cell(column.decoded[index], column.has_probabilities) for column in columns)
                rows.append((str(index + 1), code(end_of(visible(one.text))), *cells))
        lines += markdown_table(head, rows).splitlines()
    return lines


def drafts_cell(decoded: Decoded, has_probabilities: bool) -> str:
    """The drafts, one per line; after the first one the probability of its first word."""
    if not decoded.drafts:
        return "no draft"
    lines = [code(visible(draft.text)) if draft.text else "empty" for draft in decoded.drafts]
    if has_probabilities:
        lines[0] += f" {percent(math.exp(decoded.drafts[0].score))}"
    return "<br>".join(lines)


def percent(probability: float) -> str:
    """A probability in percent, with a decimal if it is small."""
    value = 100 * probability
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.1f} %"


def visible(text: str) -> str:
    """A text in one line, with signs for line breaks, other control characters and invisible spaces."""
    return _HIDDEN_SPACE.sub("␣", text).translate(_SIGNS)


def end_of(text: str) -> str:
    """The last characters of a text, after an ellipsis if the text is longer."""
    return text if len(text) <= SHOWN_CHARACTERS else f"…{text[1 - SHOWN_CHARACTERS :]}"


def code(text: str) -> str:
    """A text as code inside a table cell.

    The fence is longer than any run of backticks in the text. In some renderers no fence keeps a pipe from ending the
    cell, so a text with a pipe becomes HTML without characters that are special in Markdown.
    """
    if "|" in text:
        return f"<code>{_MARK.sub(lambda found: f'&#{ord(found[0])};', text)}</code>"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}"
