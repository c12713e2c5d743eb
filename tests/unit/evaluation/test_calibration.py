"""Reliability of scores: bins, their error, and what a lowest score leaves."""

import math

import pytest

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.decoders.decoders import DecodedDraft
from superdraft.evaluation.reports.calibration import calibration, calibration_tables
from superdraft.evaluation.reports.records import PromptRecord


def record(name: str, *drafts: tuple[str, float]) -> PromptRecord:
    return PromptRecord(
        name, "", tuple(DecodedDraft(text, (1,), math.log(p), (math.log(p),)) for text, p in drafts), 0, 0.0
    )


PROMPTS = [Prompt(name, "x", "The", "cat sat", is_mid_word=False) for name in "ab"]
RECORDS = [
    record("a", (" cat sleeps", 0.6), (" dog", 0.25), (" sat", 0.005)),
    record("b", (" cow", 0.6), (" cat", 0.04)),
]


def test_bins_error_and_cuts():
    found = calibration(RECORDS, PROMPTS)
    assert [(one.num_drafts, one.right) for one in found.bins] == [(1, 0.0), (1, 1.0), (1, 0.0), (2, 0.5)]
    assert [one.predicted for one in found.bins] == pytest.approx([0.005, 0.04, 0.25, 0.6])
    assert found.error == pytest.approx((0.005 + 0.96 + 0.25 + 2 * 0.1) / 5)
    everything, _, _, _, tenth, *_, half = found.cuts
    assert (everything.shown, everything.right, everything.prompts, everything.hits) == (1.0, 0.4, 1.0, 1.0)
    assert (tenth.probability, tenth.shown, tenth.prompts, tenth.hits) == (0.1, 0.6, 1.0, 0.5)
    assert tenth.right == pytest.approx(1 / 3)
    assert (half.shown, half.right) == (0.4, 0.5)


def test_a_certain_draft_has_a_bin_and_tables_show_all():
    found = calibration([record("a", (" cat", 1.0))], PROMPTS[:1])
    assert [(one.predicted, one.right) for one in found.bins] == [(1.0, 1.0)]
    assert found.error == 0
    table = calibration_tables("mine", found)
    assert "## Calibration of mine" in table
    assert "| 1.000 | 1.000 | 1 |" in table
