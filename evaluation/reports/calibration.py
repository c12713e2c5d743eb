"""Calibration of scores as probabilities, and the effect of hiding drafts with low scores.

For the selection "distinct", whose scores are ln of the probability that a draft's first word comes next.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.measures.metrics import mean, words_right
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.reports.tables import markdown_table

EDGES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Edges of the reliability diagram's bins, in probability."""

THRESHOLDS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Probabilities below which drafts are hidden."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Drafts with similar scores.

    Attributes:
        predicted: mean of exp(score).
        right: share of drafts whose first word is right.
        num_drafts: number of drafts.
    """

    predicted: float
    right: float
    num_drafts: int


@dataclass(frozen=True, slots=True)
class Cut:
    """The effect of hiding drafts below a score.

    Attributes:
        probability: exp of the lowest score shown.
        shown: share of drafts shown.
        right: share of shown drafts whose first word is right.
        prompts: share of prompts with a shown draft.
        hits: share of prompts with a shown draft whose first word is right.
    """

    probability: float
    shown: float
    right: float
    prompts: float
    hits: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibration of a decoder's scores.

    Attributes:
        bins: bins between `EDGES` that have drafts.
        error: expected calibration error: mean over drafts of |predicted - right| of their bin (Guo et al., 2017).
        cuts: one per threshold in `THRESHOLDS`.
    """

    bins: tuple[Bin, ...]
    error: float
    cuts: tuple[Cut, ...]


def calibration(records: Sequence[PromptRecord], prompts: Sequence[Prompt]) -> Calibration:
    """Compute the calibration of the scores of drafts.

    Args:
        records: records with at least one draft in total.
        prompts: prompts of the records, in the same order.
    """
    drafts = [
        (number, math.exp(min(draft.score, 0.0)), words_right(draft.text, prompt.continuation) > 0)
        for number, (record, prompt) in enumerate(zip(records, prompts, strict=True))
        for draft in record.drafts
    ]
    bins = []
    for low, high in itertools.pairwise(EDGES):
        own = [(p, right) for _, p, right in drafts if low <= p < high or p == high == 1.0]
        if own:
            bins.append(Bin(mean([p for p, _ in own]), mean([float(right) for _, right in own]), len(own)))
    error = math.fsum(one.num_drafts * abs(one.predicted - one.right) for one in bins) / len(drafts)
    return Calibration(tuple(bins), error, tuple(_cut(drafts, len(records), least) for least in THRESHOLDS))


def _cut(drafts: Sequence[tuple[int, float, bool]], num_prompts: int, least: float) -> Cut:
    kept = [(number, right) for number, p, right in drafts if p >= least]
    return Cut(
        least,
        len(kept) / len(drafts),
        mean([float(right) for _, right in kept]),
        len({number for number, _ in kept}) / num_prompts,
        len({number for number, right in kept if right}) / num_prompts,
    )


def calibration_tables(name: str, found: Calibration) -> str:
    """The calibration of a decoder as Markdown tables."""
    bins = [(f"{one.predicted:.3f}", f"{one.right:.3f}", str(one.num_drafts)) for one in found.bins]
    cuts = [
        (f"{one.probability:g}", *(f"{share:.3f}" for share in (one.shown, one.right, one.prompts, one.hits)))
        for one in found.cuts
    ]
    cut_head = ("exp(score) at least", "drafts shown", "right among them", "prompts with a draft", "with a right one")
    blocks = [
        f"## Calibration of {name}",
        f"Expected calibration error {found.error:.4f}.",
        markdown_table(("exp(score)", "first word right", "drafts"), bins),
        markdown_table(cut_head, cuts),
    ]
    return "\n\n".join(blocks)
