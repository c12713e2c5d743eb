"""One pass: the model runs rows of drafts and tokens of prompts, then next and first tokens are chosen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from superdraft.decoding.engine.branching import Branching
from superdraft.decoding.engine.decode import DecodeStep, PromptRows, Row, no_token
from superdraft.decoding.engine.faults import Faults
from superdraft.decoding.engine.openings import Openings
from superdraft.decoding.engine.scheduler import Scheduler, Work
from superdraft.decoding.engine.sequence import Branch, Sequence
from superdraft.decoding.engine.tree import Node
from superdraft.decoding.engine.trees import Trees
from superdraft.decoding.method.scoring import are_numbers


@dataclass(frozen=True, slots=True)
class Pass:
    """Carries out what the scheduler decides.

    Attributes:
        trees: where keys and values are.
        scheduler: is told which prompts are complete.
        decode_step: runs the model and chooses tokens.
        branching: gives drafts rows of their own.
        openings: chooses the first tokens of healed prompts.
        clock: monotonic seconds.
    """

    trees: Trees
    scheduler: Scheduler
    decode_step: DecodeStep
    branching: Branching
    openings: Openings
    clock: Callable[[], float]

    def run(self, work: Work, faults: Faults) -> int:
        """Run the model, then choose next tokens for running branches and first tokens for complete prompts.

        Args:
            work: what to do.
            faults: records the requests that cannot continue.

        Returns:
            The number of rows of drafts that were run.
        """
        known = {branch: node for branch in work.branches if (node := self.trees.known_node(branch)) is not None}
        for branch, node in known.items():
            branch.follow(node)
        running = [branch for branch in work.branches if branch not in known]
        rows = [Row(branch, index, branch.next_key) for index, branch in enumerate(running)]
        prompts = [_prompt_rows(sequence, num_tokens) for sequence, num_tokens in work.prompts]
        fed = [prompt for prompt in prompts if prompt.token_ids]
        logits: list[Tensor] = []
        run = dict.fromkeys([*(branch.sequence for branch in running), *(prompt.sequence for prompt in fed)])
        with faults.ending(*run):
            if run:
                sizes = [len(running), *(prompt.num_logits for prompt in fed)]
                logits = list(torch.split(self.decode_step.forward(running, fed), sizes))
                for branch in running:
                    branch.count_step()
        for prompt, own in zip(fed, logits[1:], strict=False):
            with faults.ending(prompt.sequence):
                if not are_numbers(own):
                    raise no_token(prompt.sequence, is_forbidden=False)
                self.trees.note_prompt(prompt.sequence, len(prompt.token_ids), own)
        ready = [prompt.sequence for prompt in prompts if not prompt.sequence.num_unfed_tokens]
        known = {branch: node for branch, node in known.items() if faults.of(branch.sequence) is None}
        self._choose(
            rows if logits else [], logits[:1], [one for one in ready if faults.of(one) is None], known, faults
        )
        self._follow_known([one for one in work.sequences if not one.num_unfed_tokens], faults)
        return len(running)

    def _choose(
        self,
        rows: list[Row],
        logits: list[Tensor],
        ready: list[Sequence],
        known: Mapping[Branch, Node],
        faults: Faults,
    ) -> None:
        """Choose the next tokens of running branches, and the first ones of requests whose prompts are complete.

        Args:
            rows: the branches that were run.
            logits: the tensor with their logits, shape [B, V]; empty if nothing was run.
            ready: the requests whose prompts are complete.
            known: the branches whose rows were known.
            faults: records the requests that cannot continue.
        """
        firsts: list[Tensor] = []
        now_s = self.clock()
        for sequence in ready:
            self.scheduler.start(sequence, now_s)
            with faults.ending(sequence):
                of_prompt, sequence.prompt_logits = sequence.prompt_logits, []
                healing = sequence.healing
                if healing is not None:
                    sequence.branches[0].stem_ids = healing.tail
                branches = self.branching.begin(sequence)
                if healing is not None and sequence.params.max_tokens:
                    self.openings.choose(sequence, of_prompt)
                elif sequence.params.max_tokens:
                    index = sum(map(len, logits)) + len(firsts)
                    rows += [Row(branch, index) for branch in branches]
                    firsts += [last.unsqueeze(0) for last in of_prompt]  # one: without healing, all tokens are shared
        # `choose` changes logits in place, so those that are kept for other requests have to be copied.
        own = torch.cat([*logits, *firsts]) if firsts else next(iter(logits), torch.empty(0, 0))
        rows += [Row(branch, len(own) + index) for index, branch in enumerate(known)]
        # A free place for a draft goes to the first branch that asks: the order must not depend on what is known.
        places = {branch: place for row in rows for place, branch in enumerate(row.branch.sequence.branches)}
        rows.sort(key=lambda row: places[row.branch])
        self._choose_rows(rows, own, list(known.values()), faults)

    def _choose_rows(self, rows: list[Row], logits: Tensor, known: list[Node], faults: Faults) -> None:
        """Choose the next tokens of these rows; then give likely drafts rows of their own, and reset where due."""
        if not rows:
            return
        self.decode_step.choose(rows, logits, faults, known)
        for branch in (row.branch for row in rows):
            if faults.of(branch.sequence) is None:
                with faults.ending(branch.sequence):
                    self.branching.divide(branch)
                    if branch.num_steps > 1:
                        self.branching.reset_if_due(branch, faults)

    def _follow_known(self, sequences: list[Sequence], faults: Faults) -> None:
        """Let requests continue as long as all their branches go where earlier drafts went, which needs no model."""
        while sequences:
            known: dict[Branch, Node] = {}
            for sequence in sequences:
                growing = [branch for branch in sequence.branches if not branch.is_done]
                nodes = [self.trees.known_node(branch) for branch in growing]
                if faults.of(sequence) is None:
                    own = {branch: node for branch, node in zip(growing, nodes, strict=True) if node is not None}
                    known |= own if len(own) == len(growing) else {}
            for branch, node in known.items():
                branch.follow(node)
            rows = [Row(branch, index) for index, branch in enumerate(known)]
            self._choose_rows(rows, torch.empty(0, 0), list(known.values()), faults)
            sequences = list(dict.fromkeys(branch.sequence for branch in known))


def _prompt_rows(sequence: Sequence, num_tokens: int) -> PromptRows:
    """The next tokens of a prompt. The logits after its last shared token, and all after it, are wanted."""
    start = sequence.branches[0].base
    stop = start + num_tokens
    num_logits = max(0, stop - max(start, sequence.num_shared - 1))
    return PromptRows(sequence, sequence.prompt_token_ids[start:stop], num_logits)
