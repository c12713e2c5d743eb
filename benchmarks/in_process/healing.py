"""What token healing gains: drafts of prompts that end inside a word, with healing and without.

A draft completes its word if the word characters that it begins with are those that the reference begins with: "nt at
noon" completes "appointme", "nts at noon" does not. The requests of both kinds differ in healing alone.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from superdraft.benchmarks.machine import describe_machine
from superdraft.decoding.text.words import is_word_character
from superdraft.evaluation.cases.prompts import Prompt, read_prompts
from superdraft.evaluation.decoders.decoder_spec import DecoderSpec, parse_decoders
from superdraft.evaluation.decoders.decoders import Ask, Decoder
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.measures.bootstrap import Interval, interval
from superdraft.server.errors import CommandError

PROMPTS_AT_ONCE = 128
ALL = "all"

Counts = NDArray[np.float64]
"""Drafts that complete the word, drafts, whether the first one does, whether any does; of each prompt: shape [n, 4]."""


def main(prompts: list[Path], model: str, dtype: str, decoder: str, limit: int | None, as_json: bool) -> None:
    """Measure and print.

    Args:
        prompts: files of JSON lines with `prompt`, `reference` and `typed`.
        model: as for the server.
        dtype: as for the server.
        decoder: as in `superdraft eval quality`.
        limit: at most so many prompts; they are taken from the files in turns.
        as_json: print JSON instead of a table.

    Raises:
        CommandError: a file is wrong, holds a prompt that does not end inside a word, or there is no prompt at all.
    """
    asked = read_prompts(prompts, limit)
    check(asked)
    spec = single_decoder(decoder)
    workbench = Workbench(ModelChoice(model, dtype, "auto"), [one.text + one.continuation for one in asked], [spec])
    decoders = [workbench.decoder(with_healing(spec, heals)) for heals in (True, False)]
    parts = [asked[start : start + PROMPTS_AT_ONCE] for start in range(0, len(asked), PROMPTS_AT_ONCE)]
    counts = [
        [completed(part, one) for one in decoders]
        for part in track(parts, "completing", console=Console(stderr=True), transient=True)
    ]
    healed, unhealed = (np.concatenate(one) for one in zip(*counts, strict=True))
    report = {
        "question": __doc__.splitlines()[0],
        "machine": describe_machine(),
        "settings": {
            "model": workbench.loaded.name,
            "dtype": dtype,
            "decoder": decoder,
            "num_drafts": workbench.params(spec).num_drafts,
            "max_tokens": workbench.params(spec).max_tokens,
            "prompts": [path.name for path in prompts],
        },
        "rows": rows_of([one.domain for one in asked], healed, unhealed),
    }
    _print(report, as_json)


def single_decoder(text: str) -> DecoderSpec:
    """The decoder that is measured with healing and without.

    Raises:
        CommandError: it names no decoder, or several, or sets healing itself.
    """
    (spec, *others) = parse_decoders(text, "auto", {"num_drafts": [3], "max_tokens": [10]})
    if others:
        raise CommandError(f"--decoder {text!r} stands for {1 + len(others)} decoders; give each value by itself.")
    if "token_healing" in dict(spec.options):
        raise CommandError(f"--decoder {text!r} has the option healing, which is measured both ways; leave it out.")
    return spec


def with_healing(spec: DecoderSpec, heals: bool) -> DecoderSpec:
    """The decoder with healing on or off."""
    return replace(spec, options=(*spec.options, ("token_healing", heals)))


def check(prompts: Sequence[Prompt]) -> None:
    """Refuse what cannot be measured.

    Raises:
        CommandError: there are no prompts, or one does not end inside a word.
    """
    if not prompts:
        raise CommandError("The files hold no prompts.")
    for prompt in prompts:
        if not prompt.is_mid_word or not leading_word(prompt.reference):
            raise CommandError(
                f"Prompt {prompt.id!r} does not end inside a word: give it a field `typed`, and a `reference` that "
                "begins with the rest of the word."
            )


def leading_word(text: str) -> str:
    """The word characters that a text begins with."""
    return "".join(takewhile(is_word_character, text))


def completed(prompts: Sequence[Prompt], decoder: Decoder) -> Counts:
    """What became of each prompt's word."""
    asks = [Ask(one.text, one.id, one.domain) for one in prompts]
    counts = np.zeros((len(asks), 4))
    for row, prompt, decoded in zip(counts, prompts, decoder.decode(asks), strict=True):
        rest = leading_word(prompt.reference)
        are_right = [leading_word(draft.text) == rest for draft in decoded.drafts]
        row[:] = sum(are_right), len(are_right), any(are_right[:1]), any(are_right)
    return counts


def rows_of(domains: Sequence[str], healed: Counts, unhealed: Counts) -> list[dict[str, Any]]:
    """A row for each domain, and one for all prompts."""
    names = np.array(domains)
    rows = []
    for domain in [*sorted(set(domains)), ALL]:
        mask = np.ones(len(names), dtype=bool) if domain == ALL else names == domain
        row: dict[str, Any] = {"domain": domain, "num_prompts": int(mask.sum())}
        for kind, counts in (("healed", healed[mask]), ("unhealed", unhealed[mask])):
            row[kind] = {
                "drafts": _bounds(interval(counts[:, :2])),
                "first": _bounds(interval(_per_prompt(counts[:, 2]))),
                "any": _bounds(interval(_per_prompt(counts[:, 3]))),
            }
        without = row["unhealed"]["drafts"][0]
        row["times"] = round(row["healed"]["drafts"][0] / without, 2) if without else None
        rows.append(row)
    return rows


def _per_prompt(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([values, np.ones(len(values))], axis=1)


def _bounds(figure: Interval) -> list[float]:
    return [round(value, 4) for value in (figure.value, figure.low, figure.high)]


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201 (standard output is the product here)
        return
    kinds = ("healed", "unhealed")
    heads = [f"{figure} {kind}" for figure in ("drafts", "first", "any") for kind in kinds]
    table = Table("domain", "prompts", *heads, "times")
    for row in report["rows"]:
        cells = [
            "{:.3f} [{:.3f}, {:.3f}]".format(*row[kind][figure])
            for figure in ("drafts", "first", "any")
            for kind in kinds
        ]
        table.add_row(
            row["domain"], str(row["num_prompts"]), *cells, "-" if row["times"] is None else str(row["times"])
        )
    console = Console()
    console.print(table)
    console.print({"machine": report["machine"], "settings": report["settings"]})
