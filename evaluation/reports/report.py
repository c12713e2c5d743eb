"""Reports: results.json, Markdown tables, and a table for the terminal."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.decoders.decoder_spec import Sweep
from superdraft.evaluation.decoders.decoders import Contender
from superdraft.evaluation.measures.bootstrap import LEVEL, Interval
from superdraft.evaluation.reports.calibration import Calibration, calibration_tables
from superdraft.evaluation.reports.figures import Figures, collect, differences, intervals, nested
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.reports.tables import format_interval, markdown_table

# Always in results.json; null if not measured.
ALWAYS = (
    "perplexity_best",
    "perplexity_mean",
    "perplexity_by_rank",
    "exact_match_any",
    "keystroke_savings",
    "distinct_starts",
    "self_bleu",
    "mean_words",
    "forward_rows",
)
TITLES = {
    "forward_rows": "rows",
    "perplexity_best": "best ppl",
    "perplexity_mean": "mean ppl",
    "exact_match_any/1": "EM@1",
    "exact_match_any/2": "EM@2",
    "exact_match_any/3": "EM@3",
    "exact_match_first/1": "EM@1, first draft",
    "words_right": "words right",
    "keystroke_savings": "keystrokes saved",
    "distinct_starts": "distinct starts",
    "self_bleu": "Self-BLEU",
    "mean_words": "mean words",
    "precision/1": "P@1",
    "precision/2": "P@2",
    "precision/3": "P@3",
    "coverage": "coverage",
    "num_drafts": "drafts",
    "request_ms": "ms",
    "saved_at/1": "saved@1",
    "saved_at/3": "saved@3",
    "acceptance_rate_at/1": "accepted@1",
    "acceptance_rate_at/3": "accepted@3",
    "saved_at_in_part/1": "saved@1, in part",
    "saved_at_in_part/3": "saved@3, in part",
    "acceptance_rate_at_in_part/1": "accepted@1, in part",
    "acceptance_rate_at_in_part/3": "accepted@3, in part",
    "broken_joints/first": "broken, first",
    "broken_joints/drafts": "broken, drafts",
    "broken_joints/any": "broken, any",
    "exact_line/first": "line, first",
    "exact_line/any": "line, any",
    "first_word/first": "word, first",
    "first_word/any": "word, any",
    "first_character/first": "character, first",
    "first_character/any": "character, any",
}
DOMAIN_FIGURES = (
    "exact_match_any/1",
    "keystroke_savings",
    "words_right",
    "perplexity_best",
    "perplexity_mean",
    "distinct_starts",
)


@dataclass(frozen=True, slots=True)
class DecoderResult:
    """The reported results of one decoder.

    Attributes:
        name: name of the decoder.
        figures: one row per prompt.
        domains: the same for the prompts of each domain.
        sweep: the series that the decoder belongs to, if any.
        calibration: of its scores, if they are probabilities.
        wall_s: decoding time of all prompts, without judging and typing.
        settings: everything that the drafts depend on.
    """

    name: str
    figures: Figures
    wall_s: float
    settings: Mapping[str, Any]
    domains: Mapping[str, Figures] = field(default_factory=dict)
    sweep: Sweep | None = None
    calibration: Calibration | None = None

    @property
    def num_prompts(self) -> int:
        """Number of prompts or questions."""
        return max(map(len, self.figures.values()), default=0)


def decoder_result(
    contender: Contender,
    prompts: Sequence[Prompt],
    records: Sequence[PromptRecord],
    figures: Callable[[Sequence[PromptRecord], Sequence[Prompt], int], Figures] = collect,
) -> DecoderResult:
    """The result of one decoder on prompts with references.

    Args:
        contender: the decoder.
        prompts: the prompts.
        records: their records, in the same order.
        figures: computes the figures of records and prompts, with the decoder's number of decode steps.
    """
    domains = {}
    for domain in dict.fromkeys(prompt.domain for prompt in prompts):
        own = [i for i, prompt in enumerate(prompts) if prompt.domain == domain]
        domains[domain] = figures([records[i] for i in own], [prompts[i] for i in own], contender.num_steps)
    return DecoderResult(
        contender.name,
        figures(records, prompts, contender.num_steps),
        wall_s=total_wall_s(records),
        settings=contender.settings,
        domains=domains,
        sweep=contender.sweep,
    )


def total_wall_s(records: Sequence[PromptRecord]) -> float:
    """Decoding time of all records, in seconds."""
    return round(sum(record.wall_s for record in records), 3)


def results_document(command: str, results: Sequence[DecoderResult], about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of results.json.

    Args:
        command: name of the command.
        results: the decoders; the first is the baseline of differences.
        about: files, options, machine.
    """
    baseline = results[0]
    decoders = {}
    for result in results:
        entry = _with_bounds(intervals(result.figures))
        decoders[result.name] = {
            **dict.fromkeys(ALWAYS),
            **entry,
            "wall_s": result.wall_s,
            "n": result.num_prompts,
            "by_domain": {name: _with_bounds(intervals(figures)) for name, figures in result.domains.items()},
            "difference_to_baseline": _with_bounds(differences(result.figures, baseline.figures)),
            "settings": result.settings,
        }
        if result.calibration is not None:
            decoders[result.name]["calibration"] = asdict(result.calibration)
    return {"command": command, "baseline": baseline.name, "ci_level": LEVEL, **about, "decoders": decoders}


def _with_bounds(found: Mapping[str, Interval]) -> dict[str, Any]:
    """Values and, under "ci", their confidence bounds in the same shape."""
    values = nested({name: _number(one.value) for name, one in found.items()})
    bounds = nested({name: [_number(one.low), _number(one.high)] for name, one in found.items()})
    return {**values, "ci": bounds}


def _number(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return round(value, 6) if math.isfinite(value) else None


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write atomically: a reader sees the old document or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def markdown(title: str, results: Sequence[DecoderResult], names: Sequence[str]) -> str:
    """The tables: all prompts, differences to the first decoder, and domains.

    Args:
        title: the heading.
        results: the decoders.
        names: figures that get a column if they were measured.
    """
    found = {result.name: intervals(result.figures) for result in results}
    columns = [name for name in names if any(name in one for one in found.values())]
    blocks = [
        f"# {title}",
        f"{results[0].num_prompts} prompts; {LEVEL:.0%} bootstrap confidence bounds over prompts in brackets.",
        _table(found, columns, {result.name: f"{result.wall_s:.1f}" for result in results}),
    ]
    if len(results) > 1:
        paired = {one.name: differences(one.figures, results[0].figures) for one in results[1:]}
        blocks += [f"## Difference to {results[0].name}", "Paired by prompt.", _table(paired, columns)]
    domains = list(results[0].domains)
    for name in DOMAIN_FIGURES if len(domains) > 1 else ():
        if name in columns:
            per_domain = {
                one.name: {domain: intervals({name: one.domains[domain][name]})[name] for domain in domains}
                for one in results
                if name in one.figures
            }
            blocks += [f"## {TITLES[name]} by domain", _table(per_domain, domains)]
    blocks += [calibration_tables(one.name, one.calibration) for one in results if one.calibration is not None]
    return "\n\n".join(blocks) + "\n"


def summary_table(results: Sequence[DecoderResult], names: Sequence[str]) -> Table:
    """The figures without bounds, for the terminal: a column per decoder, because there may be many figures."""
    found = {result.name: intervals(result.figures) for result in results}
    table = Table("", *found)
    for name in names:
        values = [one[name].value if name in one else math.nan for one in found.values()]
        if not all(map(math.isnan, values)):
            table.add_row(TITLES.get(name, name), *("" if math.isnan(value) else f"{value:.3g}" for value in values))
    return table


def _table(
    rows: Mapping[str, Mapping[str, Interval]], columns: Sequence[str], seconds: Mapping[str, str] | None = None
) -> str:
    head = ["decoder", *(TITLES.get(name, name) for name in columns), *(["seconds"] if seconds else [])]
    lines = []
    for label, cells in rows.items():
        shown = [format_interval(cells[name]) if name in cells else "" for name in columns]
        lines.append([label.replace("|", "\\|"), *shown, *([seconds[label]] if seconds else [])])
    return markdown_table(head, lines)
