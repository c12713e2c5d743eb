"""A selection rule from outside: a class and an entry in the registry."""

import pytest
from support.decoding import tiny_engine

from superdraft.decoding.errors import InvalidRequestError
from superdraft.decoding.method.draft_set import DraftSet
from superdraft.decoding.method.selection import RULES, Paper
from superdraft.decoding.params import GenerationParams


class OneChildEach(Paper):
    """Every draft goes on with its own best child; the first step begins k drafts."""

    name = "one-child-each"

    def select(self, drafts, children, extend, num_drafts):
        grown = {}
        for parent, child in children.each(extend):
            grown.setdefault(parent if len(drafts.alive) > 1 else child.token_ids, child)
        return DraftSet(tuple(grown.values())[:num_drafts], drafts.finished)


def test_a_registered_rule_decodes_and_its_score_ranks(monkeypatch):
    params = {"num_drafts": 3, "max_tokens": 5, "alpha": 0.0, "tau": 1.0}
    with pytest.raises(InvalidRequestError, match="selection must be one of paper, distinct, got 'one-child-each'"):
        GenerationParams(selection="one-child-each", **params)
    monkeypatch.setitem(RULES, "one-child-each", OneChildEach())
    engine, _ = tiny_engine()
    drafts = engine.generate("The cat", GenerationParams(selection="one-child-each", **params)).drafts
    assert len({draft.token_ids[0] for draft in drafts}) == 3  # no draft has taken another one's place
    scores = [draft.score for draft in drafts]
    assert scores == sorted(scores, reverse=True)
    paper = engine.generate("The cat", GenerationParams(**params)).drafts
    assert [draft.token_ids for draft in drafts] != [draft.token_ids for draft in paper]
