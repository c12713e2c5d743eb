"""The token tree of a request: which tokens' keys and values are in which cells of a KV-cache slot. No tensors of them.

::

    trunk   the prompt's tokens, in the cells of the same number as their positions
    path    the cells behind a beginning of the trunk that one draft, or several superposed ones, follow
    node    a cell of a path of real tokens, with the candidates for the next token: what comes next is known
    cell    taken one after another; those that no path needs any more are taken again when the slot is full

A row sees the beginning of the trunk that it follows and its own path, nothing else. Forks share the cells of what they
have in common, so a fork, a drop or a merge is a change of tuples.

Nodes outlive their request. A prompt that continues where a draft went finds keys and values there, and a draft that
repeats an earlier one needs no row of the model.
"""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from superdraft.decoding.method.scoring import Candidates

GAP_SHARE = 16
MAX_GAP_CELLS = 16
"""Cells behind the trunk that paths leave free, so that the next tokens that are typed overwrite no node."""

_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Node:
    """A real token behind the trunk.

    Attributes:
        cell: where its keys and values are.
        candidates: the most probable next tokens, of one row.
    """

    cell: int
    candidates: Candidates


@dataclass(slots=True, eq=False)
class Tree:
    """A slot's tree, in use by a request or warm, that is, kept for the next one.

    Attributes:
        slot: the KV-cache slot.
        num_cells: cells of the slot.
        isolation: only requests with the same value may find what is kept.
        trunk: the tokens in the first cells.
        nodes: by the last of `text_keys` of the text up to each.
        stems: as nodes, the cells of other tokenisations of the end of a prompt.
        is_used: whether a request uses it.
        is_ahead: whether it was run ahead, for a request that had not been sent.
        last_use: a number that grows with each use; 0: never.
    """

    slot: int
    num_cells: int
    isolation: str = ""
    trunk: list[int] = field(default_factory=list)
    nodes: dict[int, Node] = field(default_factory=dict)
    stems: dict[int, int] = field(default_factory=dict)
    is_used: bool = False
    is_ahead: bool = False
    last_use: int = 0
    _next: int = 0
    _returned: list[int] = field(default_factory=list)

    def extend_trunk(self, token_ids: Sequence[int]) -> None:
        """Note that the tokens after the trunk have been run in the cells behind it. Nodes that were there are gone."""
        self.trunk += token_ids
        length = len(self.trunk)
        self._forget(range(length))
        self._returned = [cell for cell in self._returned if cell >= length]
        self._next = max(self._next, length)

    def truncate(self, length: int) -> None:
        """Forget all tokens of the trunk except the first. Nodes behind these remain."""
        del self.trunk[length:]
        if length == 0:
            self.nodes, self.stems, self._next, self._returned = {}, {}, 0, []

    def take(self, count: int, in_use: Iterable[Sequence[int]] = ()) -> tuple[int, ...]:
        """Take cells behind the trunk.

        Args:
            count: how many.
            in_use: the paths that are still needed. If the slot is full, all other cells count as free.
        """
        gap = min(MAX_GAP_CELLS, self.num_cells // GAP_SHARE)
        self._next = max(self._next, min(len(self.trunk) + gap, self.num_cells))
        while len(self._returned) < count and self._next < self.num_cells:
            self._returned.append(self._next)
            self._next += 1
        if len(self._returned) < count:
            used = {cell for path in in_use for cell in path}
            self._returned = [cell for cell in range(len(self.trunk), self.num_cells) if cell not in used]
            self._forget(self._returned)
        assert len(self._returned) >= count, "a slot has fewer cells than its request was promised"
        taken, self._returned = self._returned[:count], self._returned[count:]
        return tuple(taken)

    def cell_of(self, key: int) -> int | None:
        """The cell of the token that a text ends with, a node or a stem; None: it has not been run."""
        node = self.nodes.get(key)
        return self.stems.get(key) if node is None else node.cell

    def _forget(self, cells: Iterable[int]) -> None:
        """Drop the nodes and stems in these cells."""
        lost = set(cells)
        self.nodes = {key: node for key, node in self.nodes.items() if node.cell not in lost}
        self.stems = {key: cell for key, cell in self.stems.items() if cell not in lost}

    def match(self, token_ids: Sequence[int], keys: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """What of a prompt has keys and values here.

        Args:
            token_ids: the prompt.
            keys: `text_keys` of the prompt.

        Returns:
            How many of its first tokens are in the trunk, and the cells of the tokens behind them.
        """
        length, cells = num_common(self.trunk, token_ids), []
        for key in keys[length:]:
            node = self.nodes.get(key)
            if node is None:
                break
            cells.append(node.cell)
        return length, tuple(cells)


_SEED = secrets.randbits(60)
"""Else everybody could compute keys, and make two texts that share one: Python's hashes of numbers have no salt."""


def text_keys(token_ids: Iterable[int], before: int = _SEED) -> list[int]:
    """A 64-bit hash of each prefix of a text.

    Args:
        token_ids: the text.
        before: the last key of the text before it; by default there is none, and a random number of this process.
    """
    return list(accumulate(token_ids, lambda key, token_id: hash((key, token_id)), initial=before))[1:]


def num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of their first tokens are equal. Both are lists, or both are tuples."""
    length = min(len(one), len(other))
    # Blocks are compared at once: prompts have thousands of tokens.
    start = 0
    while start < length and one[start : start + _BLOCK] == other[start : start + _BLOCK]:
        start += _BLOCK
    return next((i for i in range(start, length) if one[i] != other[i]), length)
