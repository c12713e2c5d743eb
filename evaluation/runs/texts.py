"""`superdraft eval texts`: the drafts of everyday texts, side by side, to be read by people."""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from superdraft.evaluation.cases.prompts import read_rows
from superdraft.evaluation.decoders.decoder_spec import DecoderSpec
from superdraft.evaluation.decoders.decoders import Ask, Contender, Decoded
from superdraft.evaluation.decoders.peers import Peer, served_contender
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.runs.commands import check_names, progress_of
from superdraft.server.errors import CommandError

EVERYDAY = Path(__file__).with_name("everyday.jsonl")
NUM_DRAFTS, MAX_TOKENS = 3, 16  # what a request that says nothing but its prompt gets
SHOWN_CHARACTERS = 60

# Spaces that nobody would see: at either end, beside one another, or beside a line break.
_HIDDEN_SPACE = re.compile(r"^ | $|(?<=[ \n\t]) | (?=[ \n\t])")
_MARK = re.compile(r"[!-/:-@\[-`{-~]")
_SIGNS = {code: chr(0x2400 + code) for code in range(ord(" "))} | {ord("\n"): "⏎", ord("\t"): "⇥"}


@dataclass(frozen=True, slots=True)
class EverydayText:
    """What a person has typed so far.

    Attributes:
        kind: of text: mail, chat, document or code in the file that is shipped.
        place: where the cursor stands, such as "inside a word".
        text: all that stands before it.
        is_short: it has five words at most.
    """

    kind: str
    place: str
    text: str
    is_short: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """The drafts of one decoder.

    Attributes:
        name: of the decoder.
        decoded: for each text.
        has_probabilities: its scores are logarithms of probabilities.
    """

    name: str
    decoded: tuple[Decoded, ...]
    has_probabilities: bool


@dataclass(frozen=True, slots=True)
class TextsJob:
    """The command.

    Attributes:
        file: of texts.
        models: the language models.
        decoders: what is compared on this machine.
        peers: running servers, asked by default requests.
        api_key: of the peers.
        seed: of the sampling decoders.
        output: the Markdown file; None: the terminal.
    """

    file: Path
    models: ModelChoice
    decoders: tuple[DecoderSpec, ...]
    peers: tuple[Peer, ...]
    api_key: str | None
    seed: int
    output: Path | None


def run_texts_job(job: TextsJob, console: Console) -> None:
    """Ask for drafts of each text and write them as tables.

    Raises:
        CommandError: a file or an option is wrong, or a peer does not answer.
    """
    names = [*(spec.name for spec in job.decoders), *(peer.name for peer in job.peers)]
    check_names(names)
    texts = read_texts(job.file)
    with ExitStack() as stack:
        contenders = [
            stack.enter_context(served_contender(peer, job.api_key, NUM_DRAFTS, MAX_TOKENS)) for peer in job.peers
        ]
        if job.decoders:
            typed, kinds = [one.text for one in texts], list(dict.fromkeys(one.kind for one in texts))
            workbench = Workbench(job.models, typed, job.decoders, seed=job.seed, domains=kinds)
            contenders = [*workbench.contenders(job.decoders), *contenders]
        advance = stack.enter_context(progress_of(names, len(texts), console))
        columns = []
        for contender in contenders:
            decoded: list[Decoded] = []
            for number, one in enumerate(texts):  # each by itself, as a user asks
                decoded += contender.decoder.decode([Ask(one.text, str(number), one.kind)])
                advance(contender.name, 1)
            columns.append(Column(contender.name, tuple(decoded), scores_are_probabilities(contender)))
    tables = "\n".join(tables_of(texts, columns))
    if job.output is None:
        console.print(tables, markup=False, highlight=False, soft_wrap=True)
    else:
        job.output.write_text(tables + "\n", encoding="utf-8")
        console.print(f"{job.output} has the drafts of {len(texts)} texts.")


def read_texts(path: Path) -> list[EverydayText]:
    """Texts of a file of JSON lines with `kind`, `place` and `text`, and perhaps `short`.

    Raises:
        CommandError: it cannot be read, or a line is no such text.
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

    A running server does not say how it drafts; it is taken to do so as servers do by default.
    """
    params: Mapping[str, Any] | None = contender.settings.get("params")
    return params is None or (params["strategy"], params["selection"]) == ("superposed", "distinct")


def tables_of(texts: Sequence[EverydayText], columns: Sequence[Column]) -> list[str]:
    """The lines of a Markdown document: a table for each kind of text, its rows counted through all of them."""
    lines: list[str] = []
    for kind in dict.fromkeys(one.kind for one in texts):
        lines += ["", f"## {kind.capitalize()}", ""] if lines else [f"## {kind.capitalize()}", ""]
        lines.append(_row("", "text", *(column.name.replace("|", r"\|") for column in columns)))
        lines.append("|" + "---|" * (2 + len(columns)))
        for index, one in enumerate(texts):
            if one.kind == kind:
                cells = (drafts_cell(column.decoded[index], column.has_probabilities) for column in columns)
                lines.append(_row(str(index + 1), code(end_of(visible(one.text))), *cells))
    return lines


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def drafts_cell(decoded: Decoded, has_probabilities: bool) -> str:
    """The drafts below one another; behind the first one the probability of its first word."""
    if not decoded.drafts:
        return "no draft"
    lines = [code(visible(draft.text)) if draft.text else "empty" for draft in decoded.drafts]
    if has_probabilities:
        lines[0] += f" {percent(math.exp(decoded.drafts[0].score))}"
    return "<br>".join(lines)


def percent(probability: float) -> str:
    """A probability in percent, with a decimal where it is small."""
    value = 100 * probability
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.1f} %"


def visible(text: str) -> str:
    """A text in one line: line breaks and other control characters as signs, and spaces that would not be seen."""
    return _HIDDEN_SPACE.sub("␣", text).translate(_SIGNS)


def end_of(text: str, length: int = SHOWN_CHARACTERS) -> str:
    """The last characters of a text, with an ellipsis for what is left out."""
    return text if len(text) <= length else f"…{text[1 - length :]}"


def code(text: str) -> str:
    """A text as code inside a table's cell, whatever its characters are.

    A fence is longer than any row of backticks in it. No fence keeps a pipe from ending the cell everywhere, so that
    such a text is HTML, without characters that Markdown would read.
    """
    if "|" in text:
        return f"<code>{_MARK.sub(lambda found: f'&#{ord(found[0])};', text)}</code>"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}"
