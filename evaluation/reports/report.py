"""Reports: results.json, the same as Markdown tables, and a table for the terminal."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.decoders.decoders import Contender
from superdraft.evaluation.measures.bootstrap import LEVEL, Interval, interval, paired_difference
from superdraft.evaluation.reports.figures import Figures, collect
from superdraft.evaluation.reports.machine import describe_machine
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.reports.tables import format_interval, markdown_table

DOMAIN_FIGURES = (
    "exact_match_any/1",
    "keystroke_savings",
    "words_right",
    "perplexity_mean",
    "distinct_starts",
    "exact_line/any",
    "right_any",
)
_UNKNOWN = Interval(math.nan, math.nan, math.nan)

Bounds = Mapping[str, Interval]
FiguresOf = Callable[[Sequence[PromptRecord], Sequence[Prompt], int], Figures]
"""Computes figures of records, their prompts, and the number of decode steps of a draft that is not cut short."""


@dataclass(frozen=True, slots=True)
class DecoderResult:
    """The results of one decoder on a group of prompts.

    Attributes:
        contender: the decoder.
        num_prompts: number of prompts.
        wall_s: decoding time of all prompts, without judging and typing.
        figures: one row per prompt.
        domains: the same for the prompts of each domain.
    """

    contender: Contender
    num_prompts: int
    wall_s: float
    figures: Figures
    domains: Mapping[str, Figures] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        contender: Contender,
        prompts: Sequence[Prompt],
        records: Sequence[PromptRecord],
        figures: FiguresOf = collect,
    ) -> "DecoderResult":
        """The result from the records of the prompts, in the same order."""
        domains = {}
        for domain in dict.fromkeys(prompt.domain for prompt in prompts):
            own = [i for i, prompt in enumerate(prompts) if prompt.domain == domain]
            domains[domain] = figures([records[i] for i in own], [prompts[i] for i in own], contender.num_steps)
        wall_s = round(sum(record.wall_s for record in records), 3)
        return cls(contender, len(prompts), wall_s, figures(records, prompts, contender.num_steps), domains)

    @property
    def name(self) -> str:
        """Name of the decoder."""
        return self.contender.name

    @property
    def bounds(self) -> Bounds:
        """All figures with their bounds."""
        return bounds_of(self.figures)


def bounds_of(figures: Figures) -> Bounds:
    """Figures with their bounds."""
    return {name: interval(ratios) for name, ratios in figures.items()}


def differences(ours: Figures, theirs: Figures) -> Bounds:
    """Our figures minus theirs, paired by prompt, for the figures that both have."""
    return {name: paired_difference(ratios, theirs[name]) for name, ratios in ours.items() if name in theirs}


def write_report(
    folder: Path,
    command: str,
    groups: Mapping[str, Sequence[DecoderResult]],
    columns: Sequence[str],
    about: Mapping[str, Any],
    console: Console,
) -> None:
    """Write results.json and results.md, and print the figures without bounds.

    Args:
        folder: the folder, which exists.
        command: name of the command.
        groups: the decoders' results on each group of prompts; the first decoder is the baseline of differences.
        columns: figures in the tables; results.json has all figures.
        about: files and options.
        console: the terminal.
    """
    found = {name: {one.name: _document(one, results[0]) for one in results} for name, results in groups.items()}
    head = {"command": command, "ci_level": LEVEL, **about, "machine": describe_machine()}
    write_json(folder / "results.json", {**head, "groups": found})
    blocks = [f"# {command.capitalize()}", f"{LEVEL:.0%} bootstrap confidence bounds over prompts in brackets."]
    for name, results in groups.items():
        blocks += [f"## {name.capitalize()}: {results[0].num_prompts} prompts", *_tables(results, columns)]
        table = Table(f"{name}: {results[0].num_prompts} prompts", *(one.name for one in results))
        table.columns[0].overflow = "fold"
        for label, cells in _rows(columns, {one.name: one.bounds for one in results}):
            table.add_row(label, *("" if math.isnan(one.value) else f"{one.value:.3g}" for one in cells))
        console.print(table)
    (folder / "results.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    console.print(f"{folder / 'results.md'} has the confidence bounds, differences and domains.")


def _document(result: DecoderResult, baseline: DecoderResult) -> dict[str, Any]:
    return {
        "n": result.num_prompts,
        "wall_s": result.wall_s,
        "figures": _numbers(result.bounds),
        "difference_to_baseline": _numbers(differences(result.figures, baseline.figures)),
        "by_domain": {name: _numbers(bounds_of(figures)) for name, figures in result.domains.items()},
        "settings": result.contender.settings,
    }


def _numbers(found: Bounds) -> dict[str, list[float] | None]:
    """Each figure as value, lower and upper bound; None if it was not measured, as JSON has no NaN."""
    numbers = {name: [round(value, 6) for value in (one.value, one.low, one.high)] for name, one in found.items()}
    return {name: values if all(map(math.isfinite, values)) else None for name, values in numbers.items()}


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write atomically: a reader sees the old document or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _tables(results: Sequence[DecoderResult], names: Sequence[str]) -> list[str]:
    """The tables of a group: all prompts, differences to the first decoder, and domains."""
    blocks = [_table("", names, {one.name: one.bounds for one in results})]
    if len(results) > 1:
        paired = {one.name: differences(one.figures, results[0].figures) for one in results[1:]}
        blocks += [f"### Difference to {results[0].name}, paired by prompt", _table("", names, paired)]
    domains = list(results[0].domains)
    for name in DOMAIN_FIGURES if len(domains) > 1 else ():
        if name in names and name in results[0].figures:
            found = {one.name: {domain: interval(one.domains[domain][name]) for domain in domains} for one in results}
            blocks.append(_table(name, domains, found))
    return blocks


def _table(corner: str, names: Sequence[str], decoders: Mapping[str, Bounds]) -> str:
    head = [corner, *(name.replace("|", "\\|") for name in decoders)]
    return markdown_table(head, [[label, *map(format_interval, cells)] for label, cells in _rows(names, decoders)])


def _rows(names: Sequence[str], decoders: Mapping[str, Bounds]) -> Iterable[tuple[str, list[Interval]]]:
    """A row per figure that was measured, with a cell per decoder."""
    for name in names:
        cells = [found.get(name, _UNKNOWN) for found in decoders.values()]
        if not all(math.isnan(one.value) for one in cells):
            yield name, cells
