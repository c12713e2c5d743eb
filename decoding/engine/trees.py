"""All token trees: which slot each request gets, what it finds there, and the tokens that are run in it.

A request gets one slot, whatever the number of its drafts. After its answer the tree stays warm in the slot, so the
next request with the same beginning continues there: nothing is copied and only new tokens are run. The least recently
used tree makes room.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from torch import Tensor

from superdraft.decoding.config import SPARE_CELLS, TREE_CELLS
from superdraft.decoding.engine.kept_logits import KeptLogits
from superdraft.decoding.engine.sequence import Branch, Sequence
from superdraft.decoding.engine.tree import Node, Tree, text_keys
from superdraft.decoding.method.scoring import are_numbers
from superdraft.decoding.model.runner import ModelRunner
from superdraft.decoding.model.segments import Segment


@dataclass(frozen=True, slots=True)
class Match:
    """The first tokens of a prompt that a tree has: `length` of them, the last ones in `cells` behind its trunk."""

    length: int = 0
    tree: Tree | None = None
    cells: tuple[int, ...] = ()

    @property
    def rank(self) -> tuple[int, bool, int]:
        """The highest is the best: the longest; of equal ones a warm tree; of these one that was run ahead for it."""
        tree = self.tree
        if tree is None:
            return 0, False, 0
        foresight = 1 if not tree.is_ahead else 2 if len(tree.trunk) == self.length else 0
        return self.length, not tree.is_used, foresight


class Trees:
    """The trees of all slots. Runs real tokens in them.

    Args:
        runner: the model and its KV cache.

    Attributes:
        num_run_tokens: real tokens run so far; superposed inputs are not counted.
        num_foreseen: requests so far whose whole prompt was found in a tree that was run ahead of them.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._trees = [Tree(slot, runner.num_cells) for slot in range(runner.num_slots)]
        self._logits = KeptLogits()
        self._num_uses = 0
        self.num_run_tokens = 0
        self.num_foreseen = 0

    @property
    def num_used(self) -> int:
        """Slots that requests use now."""
        return sum(tree.is_used for tree in self._trees)

    def num_needed(self, num_prompt_tokens: int, num_rows: int, max_tokens: int) -> int:
        """Slots that a request needs: one, unless its drafts are too many and too long for the cells of one."""
        num_spare = (self._runner.num_cells - self._runner.max_model_len) * SPARE_CELLS // TREE_CELLS
        per_tree = (self._runner.num_cells - num_spare - num_prompt_tokens) // max(1, max_tokens)
        return -(-num_rows // max(1, per_tree))

    def needs(self, sequence: Sequence) -> int:
        """Slots that a request needs."""
        params = sequence.params
        return self.num_needed(len(sequence.prompt_token_ids), params.num_rows, params.max_tokens)

    def can_begin(self, sequence: Sequence) -> bool:
        """Whether there are slots for it now."""
        return len(self._trees) - self.num_used >= self.needs(sequence)

    @property
    def has_room_ahead(self) -> bool:
        """Whether there is a slot to run a request ahead in: one without a tree that others may need."""
        return any(not tree.is_used and (tree.is_ahead or not tree.last_use) for tree in self._trees)

    def begin(self, sequence: Sequence, match: Match, started_s: float) -> None:
        """Give a request its slots, the first with what was found of its prompt.

        Args:
            sequence: the request.
            match: what `find` found; nothing else may have begun since.
            started_s: the clock now.
        """
        is_ahead = sequence.request.is_ahead
        if match.tree is not None and match.tree.is_ahead and not is_ahead:
            self.num_foreseen += match.length == len(sequence.prompt_token_ids)
        tree = self._place_for(sequence, match)
        tree.is_ahead = is_ahead
        sequence.start_s, sequence.trees = started_s, [tree]
        tree.is_used = True
        for _ in range(self.needs(sequence) - 1):
            extra = self._least_recently_used()
            extra.truncate(0)
            extra.is_used, extra.is_ahead = True, is_ahead
            sequence.trees.append(extra)
        for one in sequence.trees:
            one.isolation = sequence.request.isolation
        branch = sequence.branches[0]
        branch.tree, branch.base = tree, len(tree.trunk)
        sequence.num_cached_tokens = len(tree.trunk)
        needed = sequence.prompt_keys[sequence.num_shared - 1 : len(tree.trunk)]
        found = [self._logits.get(tree.isolation, key) for key in needed]
        sequence.prompt_logits = [logits for logits in found if logits is not None]

    def find(self, sequence: Sequence) -> Match:
        """The longest usable beginning of a request's prompt."""
        best, tokens, keys = Match(), sequence.prompt_token_ids, sequence.prompt_keys
        for tree in self._trees:
            if tree.isolation != sequence.request.isolation or not tree.trunk:
                continue
            in_trunk, cells = tree.match(tokens, keys)
            if tree.is_used:
                cells = ()
            # Tokens whose logits are needed and were not kept have to be run again.
            length = in_trunk + len(cells)
            needed = range(sequence.num_shared - 1, length)
            length = next((at for at in needed if self._logits.get(tree.isolation, keys[at]) is None), length)
            found = Match(length, tree, cells[: max(0, length - in_trunk)])
            if found.length and found.rank > best.rank:
                best = found
        return best

    def keep_logits(self, tree: Tree, key: int, logits: Tensor) -> None:
        """Keep the model's output after a node, float32, shape [V]: the next prompt may end there."""
        self._logits.put(tree.isolation, key, logits)

    def _place_for(self, sequence: Sequence, match: Match) -> Tree:
        """The tree for a request, with what was found of its prompt as its trunk."""
        oldest, source, cache = self._least_recently_used(), match.tree, self._runner.cache
        if source is None or match.length == 0:
            oldest.truncate(0)
            return oldest
        in_trunk = match.length - len(match.cells)
        is_free = not source.is_used and (source.is_ahead or not sequence.request.is_ahead)
        if is_free and (source is oldest or 2 * match.length >= len(source.trunk)):
            source.truncate(in_trunk)
            if match.cells:
                cache.copy_cells(source.slot, match.cells, source.slot, range(in_trunk, match.length))
                source.extend_trunk(sequence.prompt_token_ids[in_trunk : match.length])
            return source
        oldest.truncate(0)
        cache.copy(source.slot, oldest.slot, in_trunk)
        if match.cells:
            cache.copy_cells(source.slot, match.cells, oldest.slot, range(in_trunk, match.length))
        oldest.extend_trunk(sequence.prompt_token_ids[: match.length])
        return oldest

    def _least_recently_used(self) -> Tree:
        free = (tree for tree in self._trees if not tree.is_used)
        return min(free, key=lambda tree: (tree.last_use > 0 and not tree.is_ahead, tree.last_use))

    def end(self, sequence: Sequence, *, failed: bool) -> None:
        """Take a request's slots back. Its first tree stays warm; those of a failed one are zeroed.

        A NaN in a slot would survive the attention mask.
        """
        for index, tree in enumerate(sequence.trees):
            if failed:
                self._runner.cache.clear(tree.slot)
            if failed or index > 0:
                tree.truncate(0)
            self._num_uses += 1
            tree.is_used, tree.last_use = False, self._num_uses if tree.trunk else 0
        sequence.trees = []
        for branch in sequence.branches:
            branch.tree = None

    def forget(self) -> None:
        """Drop all warm trees."""
        self._logits.forget()
        for tree in self._trees:
            if not tree.is_used:
                tree.truncate(0)
                tree.last_use = 0

    # Rows

    def next_row(self, branch: Branch) -> Segment:
        """The row that feeds a branch's next position, in a cell of its own behind the branch's path."""
        tree = branch.tree
        assert tree is not None
        (cell,) = tree.take(1, self._paths_in(tree, branch.sequence))
        branch.cells = (*branch.cells, cell)
        return Segment(tree.slot, branch.num_computed - 1, 1, branch.base, branch.cells)

    def known_node(self, branch: Branch) -> Node | None:
        """What the branch's next row would give, if it has been run before; the branch then needs no row."""
        key, params = branch.next_key, branch.sequence.params
        if key is None or branch.is_sampled or params.logit_bias or branch.tree is None:
            return None
        node = branch.tree.nodes.get(key)
        if node is None or node.candidates.token_ids.shape[-1] < params.num_candidates:
            return None
        return node

    def prompt_rows(self, sequence: Sequence, num_tokens: int) -> Segment:
        """The rows of a prompt's next tokens."""
        branch = sequence.branches[0]
        assert branch.tree is not None
        return Segment.plain(branch.tree.slot, branch.base, num_tokens)

    def note_prompt(self, sequence: Sequence, num_tokens: int, logits: Tensor) -> None:
        """Note that a prompt's next tokens have been run.

        Args:
            sequence: the request.
            num_tokens: how many.
            logits: those that were needed, the output after the last of these tokens, float32, shape [T, V]. They are
                kept for later prompts that begin like this one.
        """
        branch = sequence.branches[0]
        assert branch.tree is not None
        start, stop = branch.base, branch.base + num_tokens
        branch.tree.extend_trunk(sequence.prompt_token_ids[start:stop])
        branch.base = stop
        self.num_run_tokens += num_tokens
        keys = sequence.prompt_keys[stop - len(logits) : stop]
        isolation = branch.tree.isolation
        sequence.prompt_logits += [self._logits.put(isolation, key, row) for key, row in zip(keys, logits, strict=True)]

    def has_spare_cells(self, branch: Branch, count: int) -> bool:
        """Whether the branch's tree has room for `count` more tokens, besides those that its drafts may need."""
        params, tree = branch.sequence.params, branch.tree
        assert tree is not None
        num_rows = -(-params.num_rows // len(branch.sequence.trees))
        num_used = sum(map(len, self._paths_in(tree, branch.sequence)))
        return tree.num_cells - len(tree.trunk) - num_used - num_rows * params.max_tokens >= count

    def run_tokens(self, branch: Branch, position: int, token_ids: Seq[int]) -> Tensor:
        """Run real tokens of one text, in cells of their own; they replace what the branch has from `position` on.

        Returns:
            The logits after the last one, float32, shape [1, V].
        """
        tree = branch.tree
        assert tree is not None
        kept = branch.cells[: max(0, position - branch.base)]
        branch.base, branch.cells = min(branch.base, position), kept  # what the tokens replace is free
        branch.cells = (*kept, *tree.take(len(token_ids), self._paths_in(tree, branch.sequence)))
        segment = Segment(tree.slot, position, len(token_ids), branch.base, branch.cells)
        self.num_run_tokens += len(token_ids)
        return self._runner.forward([segment], self._runner.embed(token_ids), [len(token_ids) - 1]).float()

    def stem_logits(self, sequence: Sequence, stem_ids: tuple[int, ...]) -> Tensor | None:
        """The model's output after other tokens than the prompt's own behind the shared ones, if it was kept."""
        return self._logits.get(sequence.request.isolation, _stem_keys(sequence, stem_ids)[-1])

    def run_stem(self, branch: Branch, stem_ids: tuple[int, ...]) -> Tensor:
        """Run the tokens of a stem that the branch does not have yet, except those that an earlier request has run.

        Args:
            branch: it continues behind the stem.
            stem_ids: the stem's tokens behind the shared ones, of which the branch has the first.

        Returns:
            The logits after the stem, float32, shape [V].
        """
        sequence, tree = branch.sequence, branch.tree
        assert tree is not None
        keys = _stem_keys(sequence, stem_ids)
        num_known = branch.num_computed - sequence.num_shared
        while num_known < len(stem_ids) and (cell := tree.cell_of(keys[num_known])) is not None:
            branch.cells = (*branch.cells, cell)
            num_known += 1
        logits = self._logits.get(tree.isolation, keys[-1])
        if logits is not None and num_known == len(stem_ids):
            return logits
        start = min(num_known, len(stem_ids) - 1)
        logits = self.run_tokens(branch, sequence.num_shared + start, stem_ids[start:])[0]
        sequence.forward_rows += len(stem_ids) - start
        if are_numbers(logits):
            tree.stems |= dict(zip(keys[start:], branch.cells[start - len(stem_ids) :], strict=True))
            self._logits.put(tree.isolation, keys[-1], logits)
        return logits

    def place_twin(self, twin: Branch, source: Branch) -> None:
        """Put a branch that has just been forked into the first of its request's trees that has room for its row."""
        sequence, tree = twin.sequence, source.tree
        assert tree is not None
        if len(sequence.trees) > 1:
            num_rows = -(-sequence.params.num_rows // len(sequence.trees))
            others = [branch for branch in sequence.branches if branch is not twin]
            tree = min(
                sequence.trees,
                key=lambda one: max(0, sum(branch.tree is one for branch in others) - num_rows + 1),
            )
        twin.tree = tree
        if tree is source.tree:
            return
        assert source.tree is not None
        cache = self._runner.cache
        if len(tree.trunk) < twin.base:
            tree.truncate(0)
            cache.copy(source.tree.slot, tree.slot, twin.base)
            tree.extend_trunk(source.tree.trunk[: twin.base])
        if twin.cells:
            cells = tree.take(len(twin.cells), self._paths_in(tree, sequence))
            cache.copy_cells(source.tree.slot, twin.cells, tree.slot, cells)
            twin.cells = cells

    def follow(self, branch: Branch, base: int, cells: tuple[int, ...]) -> None:
        """Let a branch continue behind these cells of its request's first tree."""
        first = branch.sequence.trees[0]
        branch.base, branch.cells = base, cells
        if branch.tree is not None and branch.tree is not first and cells:
            branch.cells = branch.tree.take(len(cells), self._paths_in(branch.tree, branch.sequence))
            self._runner.cache.copy_cells(first.slot, cells, branch.tree.slot, branch.cells)

    @staticmethod
    def _paths_in(tree: Tree, sequence: Sequence) -> list[tuple[int, ...]]:
        return [*sequence.stem_cells, *(branch.cells for branch in sequence.branches if branch.tree is tree)]


def _stem_keys(sequence: Sequence, stem_ids: tuple[int, ...]) -> list[int]:
    """`text_keys` of the text up to each token of a stem behind a prompt's shared tokens."""
    return text_keys(stem_ids, sequence.prompt_keys[sequence.num_shared - 1])
