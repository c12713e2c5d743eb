"""Gain of token healing: drafts for prompts that end inside a word, with healing and without.

A draft completes its word if it begins with the same word characters as the reference: "nt at noon" completes
"appointme", "nts at noon" does not. The requests of both kinds differ only in healing.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from superdraft.benchmarks.options import AsJson
from superdraft.benchmarks.summary import report, tracked
from superdraft.decoding.loading.store import DEFAULT_MODEL
from superdraft.decoding.text.words import is_word_character
from superdraft.evaluation.cases.prompts import Prompt, read_prompts
from superdraft.evaluation.decoders.decoder_spec import DecoderSpec, parse_decoders
from superdraft.evaluation.decoders.decoders import Ask, Decoder
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.measures.bootstrap import Interval, interval
from superdraft.evaluation.options import Dtype, Limit, Model
from superdraft.server.errors import CommandError

PROMPTS_AT_ONCE = 128
ALL = "all"

Counts = NDArray[np.float64]
"""Per prompt: drafts that complete the word, drafts, whether the first draft does, whether any does. Shape [n, 4]."""


def main(
    prompts: Annotated[
        list[Path], typer.Option("--prompts", help="JSON lines with prompt, reference and typed. Repeatable.")
    ],
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    decoder: Annotated[str, typer.Option(help="Decoder, as in superdraft lab eval quality.")] = "served",
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Complete half-typed words, with token healing and without."""
    asked = read_prompts(prompts, limit)
    check(asked)
    spec = single_decoder(decoder)
    workbench = Workbench.of_prompts(ModelChoice(model, dtype, "auto"), asked, [spec])
    decoders = [workbench.decoder(with_healing(spec, heals)) for heals in (True, False)]
    parts = [asked[start : start + PROMPTS_AT_ONCE] for start in range(0, len(asked), PROMPTS_AT_ONCE)]
    counts = [[completed(part, one) for one in decoders] for part in tracked(parts, "completing", transient=True)]
    healed, unhealed = (np.concatenate(one) for one in zip(*counts, strict=True))
    settings = {
        "model": workbench.loaded.name,
        "dtype": dtype,
        "decoder": decoder,
        "num_drafts": workbench.params(spec).num_drafts,
        "max_tokens": workbench.params(spec).max_tokens,
        "prompts": [path.name for path in prompts],
    }
    rows = rows_of([one.domain for one in asked], healed, unhealed)
    report(__doc__, settings, as_json, rows=rows)


def single_decoder(text: str) -> DecoderSpec:
    """The decoder to measure with healing and without.

    Raises:
        CommandError: `text` names no decoder or several, or sets healing itself.
    """
    (spec, *others) = parse_decoders(text, "auto", {"num_drafts": 3, "max_tokens": 10})
    if others:
        raise CommandError(f"--decoder {text!r} means {1 + len(others)} decoders; give one value per option.")
    if "token_healing" in dict(spec.options):
        raise CommandError(f"--decoder {text!r} has the option healing, which is measured both ways; leave it out.")
    return spec


def with_healing(spec: DecoderSpec, heals: bool) -> DecoderSpec:
    """The decoder with healing switched on or off."""
    return replace(spec, options=(*spec.options, ("token_healing", heals)))


def check(prompts: Sequence[Prompt]) -> None:
    """Check that every prompt can be measured.

    Raises:
        CommandError: one does not end inside a word.
    """
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
    """Decode the prompts and count which drafts complete each prompt's word."""
    asks = [Ask(one.text, one.id, one.domain) for one in prompts]
    counts = np.zeros((len(asks), 4))
    for row, prompt, decoded in zip(counts, prompts, decoder.decode(asks), strict=True):
        rest = leading_word(prompt.reference)
        are_right = [leading_word(draft.text) == rest for draft in decoded.drafts]
        row[:] = sum(are_right), len(are_right), any(are_right[:1]), any(are_right)
    return counts


def rows_of(domains: Sequence[str], healed: Counts, unhealed: Counts) -> list[dict[str, Any]]:
    """A row per domain, and one for all prompts."""
    names = np.array(domains)
    rows = []
    for domain in [*sorted(set(domains)), ALL]:
        mask = np.ones(len(names), dtype=bool) if domain == ALL else names == domain
        row: dict[str, Any] = {"domain": domain, "num_prompts": int(mask.sum())}
        for kind, counts in (("healed", healed[mask]), ("unhealed", unhealed[mask])):
            row[f"drafts_{kind}"] = _bounds(interval(counts[:, :2]))
            row[f"first_{kind}"] = _bounds(interval(_per_prompt(counts[:, 2])))
            row[f"any_{kind}"] = _bounds(interval(_per_prompt(counts[:, 3])))
        without = row["drafts_unhealed"][0]
        row["times"] = round(row["drafts_healed"][0] / without, 2) if without else None
        rows.append(row)
    return rows


def _per_prompt(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([values, np.ones(len(values))], axis=1)


def _bounds(figure: Interval) -> list[float]:
    return [round(value, 4) for value in (figure.value, figure.low, figure.high)]
