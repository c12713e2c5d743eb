"""Places inside lines: what is missing there, and what counts as right."""

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.decoders.decoders import DecodedDraft
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.runs.inside_lines import COLUMNS, KINDS, gaps_of, line_figures

TEXT = " ".join(f"word{letter}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
PROMPT = Prompt("1", "email", TEXT[:40].rstrip(), TEXT[40:].lstrip())


def test_a_gap_of_each_kind():
    gaps = {gap.domain: gap for gap in gaps_of([PROMPT], seed=1)}
    assert set(gaps) == set(KINDS)
    whole = PROMPT.text + PROMPT.continuation + "\n"
    assert all(gap.text + gap.continuation + gap.suffix == whole for gap in gaps.values())
    assert 1 <= len(gaps[KINDS[0]].reference.split()) <= 4
    assert gaps[KINDS[0]].reference.startswith(" ")
    assert gaps[KINDS[1]].reference.isalpha()
    assert gaps[KINDS[2]].reference == ""
    assert gaps_of([PROMPT], seed=1) == gaps_of([PROMPT], seed=1)


def test_short_texts_have_no_gap():
    assert gaps_of([Prompt("1", "email", "one two", "three")], seed=1) == []


def counts(missing, drafts):
    gap = Prompt("1", KINDS[0], "See you", missing, is_mid_word=True, suffix=" tomorrow.\n")
    records = [PromptRecord("1", "", (DecodedDraft(text, 0.0),) if text else (), None, 0.0) for text in drafts]
    figures = line_figures(records, [gap] * len(drafts), 9)
    return [figures[name][:, 0].sum() for name in COLUMNS]


def test_what_counts_as_right():
    assert counts(" at noon", (" at noon", " at one", "at noon", " soon", "")) == [4, 2, 1]
    assert counts("", (" at",)) == [1, 0, 0]
