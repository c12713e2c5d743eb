"""The comparison of drafts with token healing and without, with decoders whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest

from superdraft.benchmarks.in_process.healing import check, completed, rows_of, single_decoder, with_healing
from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.decoders.decoders import Decoded, DecodedDraft
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.errors import CommandError
from superdraft.server.settings import Settings


class Answers:
    """Gives the same drafts everywhere."""

    def __init__(self, texts):
        self.drafts = tuple(DecodedDraft(text, 0.0) for text in texts)

    def decode(self, asks):
        return [Decoded(self.drafts, 1, 0.0) for _ in asks]


def prompt(name, text="an appointme", reference="nt at noon", *, is_mid_word=True, domain="chat"):
    return Prompt(name, domain, text, reference, is_mid_word=is_mid_word)


def test_a_draft_completes_its_word_if_it_is_the_true_one_and_no_longer():
    prompts = [prompt("a"), prompt("b", reference="nts")]
    healed = completed(prompts, Answers(["nt at ten", "nt", "nt, or", "nts at", ""]))
    assert healed.tolist() == [[3, 5, 1, 1], [1, 5, 0, 1]]
    assert completed(prompts, Answers([" nt", "nd", "nt"])).tolist() == [[1, 3, 0, 1], [0, 3, 0, 0]]


def test_both_kinds_are_the_same_request_but_for_healing():
    drafting, settings = DraftingDefaults.of(Settings()), Settings()
    spec = single_decoder("served k=2")
    on, off = (with_healing(spec, heals).params(drafting, settings) for heals in (True, False))
    assert (on.token_healing, off.token_healing, on.num_drafts) == (True, False, 2)
    assert replace(off, token_healing=True) == on == spec.params(drafting, settings)
    for wrong, message in (("served k=1,2", "means 2 decoders"), ("served healing=off", "measured both ways")):
        with pytest.raises(CommandError, match=message):
            single_decoder(wrong)


def test_shares_are_of_all_drafts_and_of_prompts_by_domain_and_together():
    healed = np.array([[3, 3, 1, 1], [1, 1, 1, 1], [0, 4, 0, 0]], dtype=float)
    unhealed = np.array([[1, 4, 0, 1], [0, 2, 0, 0], [0, 2, 0, 0]], dtype=float)
    blog, chat, together = rows_of(["chat", "chat", "blog"], healed, unhealed)
    assert (blog["domain"], blog["num_prompts"], blog["drafts_healed"][0], blog["times"]) == ("blog", 1, 0.0, None)
    assert (chat["domain"], chat["num_prompts"], chat["drafts_healed"][0]) == ("chat", 2, 1.0)
    assert (together["domain"], together["num_prompts"]) == ("all", 3)
    assert together["drafts_healed"][0] == 0.5
    assert together["drafts_unhealed"][0] == 0.125
    assert together["times"] == 4.0
    assert together["first_healed"][0] == pytest.approx(2 / 3, abs=1e-4)
    assert together["any_unhealed"][0] == pytest.approx(1 / 3, abs=1e-4)
    low, high = together["drafts_healed"][1:]
    assert low < 0.5 < high


@pytest.mark.parametrize("wrong", [prompt("x", is_mid_word=False), prompt("x", reference=" at noon")])
def test_prompts_that_end_at_a_word_border_are_refused(wrong):
    check([prompt("a")])
    with pytest.raises(CommandError, match="'x' does not end inside a word"):
        check([prompt("a"), wrong])
