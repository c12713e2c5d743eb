"""Selection rules: which of the k*m children become the next drafts (the last line of a decode step).

To add a rule, write a class with the members of `SelectionRule` and list it in `RULES`. The parameters' checks, the
HTTP schema, the help texts and the evaluation take the names from there.
"""

from typing import Protocol

from superdraft.decoding.method.distinct import Distinct
from superdraft.decoding.method.draft_set import Children, Draft, DraftSet, Extend
from superdraft.decoding.outputs import Extent


class SelectionRule(Protocol):
    """How a step makes the next draft set, and how finished drafts are ranked.

    Attributes:
        name: the value of the request field `selection`.
        alpha: default weight of the n-gram model.
        named_alpha: default weight of an n-gram model that the request names.
        tau: default temperature of the language model.
        scores_are_probabilities: whether exp(score) is the probability of a draft's first word.
        divides: whether drafts may get rows of their own (`max_branches`) and end early (`min_probability`).
        openings_per_draft: with token healing, the openings per draft among which the first step chooses; None: m
            openings in all.
    """

    name: str
    alpha: float
    named_alpha: float
    tau: float
    scores_are_probabilities: bool
    divides: bool
    openings_per_draft: int | None

    def select(self, drafts: DraftSet, children: Children, extend: Extend, num_drafts: int) -> DraftSet:
        """The next draft set.

        Args:
            drafts: the draft set so far.
            children: all children of its alive drafts.
            extend: appends a token to a draft.
            num_drafts: k minus the drafts on other rows of the same request.
        """

    def score(self, draft: Draft) -> float:
        """The value by which finished drafts are ranked; higher is better."""

    def extents(self, draft: Draft) -> tuple[Extent, ...]:
        """How probable the text of a draft is up to each of its words; none if the rule has no probabilities."""

    def as_read(self, text: str) -> str:
        """The key by which the drafts of an answer differ: of those with the same, only the best is shown."""


class Paper:
    """The paper's rule, as in the reference code: the k best of all children.

    The paper's eq. 1 scores the first token by the language model alone. The reference code treats the first step like
    every other, and the published constants were tuned with it, so this rule follows the code.
    """

    name = "paper"
    alpha = named_alpha = 0.54  # as published for Llama-2-7B
    tau = 0.06
    scores_are_probabilities = False
    divides = False
    openings_per_draft: int | None = None

    def select(self, drafts: DraftSet, children: Children, extend: Extend, num_drafts: int) -> DraftSet:
        """Take the 2k best children with different texts: those that end are finished, the k best others stay alive.

        Fewer than k drafts stay alive if there are fewer children. Arguments as in `SelectionRule.select`.
        """
        alive: list[Draft] = []
        ended: list[Draft] = []
        # Compared separately: an alive draft may have the text of an ended one, since it will grow beyond it.
        alive_texts: set[bytes] = set()
        ended_texts = {draft.text for draft in drafts.finished}
        for _, child in children.each(extend):
            group, texts = (alive, alive_texts) if child.finish_reason is None else (ended, ended_texts)
            if child.text not in texts:
                texts.add(child.text)
                group.append(child)
                if len(alive) + len(ended) == 2 * num_drafts:
                    break
        finished = drafts.finished
        if ended:
            finished = tuple(sorted((*finished, *ended), key=lambda draft: -draft.logprob)[:num_drafts])
        return DraftSet(tuple(alive[:num_drafts]), finished)

    def score(self, draft: Draft) -> float:
        """The length-normalised score, by which the reference code ranks drafts."""
        return draft.mean_logprob

    def extents(self, draft: Draft) -> tuple[Extent, ...]:  # noqa: ARG002
        """None: with tau and an n-gram model, scores are no probabilities of the text."""
        return ()

    def as_read(self, text: str) -> str:
        """The whole text, as in the reference code."""
        return text


PAPER: SelectionRule = Paper()
RULES: dict[str, SelectionRule] = {rule.name: rule for rule in (PAPER, Distinct())}
