"""The token tree of a request: which tokens' keys and values are in which cells of a KV-cache slot. No tensors of them.

::

    trunk   the prompt's tokens, in the cells of the same number as their positions
    path    the cells behind a beginning of the trunk that one draft, or several superposed ones, follow
    cell    taken one after another; those that no path needs any more are taken again when the slot is full

A row sees the beginning of the trunk that it follows and its own path, nothing else. Forks share the cells of what they
have in common, so a fork, a drop or a merge is a change of tuples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ExactPath:
    """Real tokens behind a beginning of the trunk, left by a draft that was decoded exactly.

    Attributes:
        base: how many of the trunk's tokens come before them.
        token_ids: the tokens.
        cells: their cells.
    """

    base: int
    token_ids: tuple[int, ...]
    cells: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Tree:
    """A slot's tree, in use by a request or warm, that is, kept for the next one.

    Attributes:
        slot: the KV-cache slot.
        num_cells: cells of the slot.
        isolation: only requests with the same value may find what is kept.
        trunk: the tokens in the first cells.
        paths: exact drafts of the last request.
        logits: the model's output after some positions of the trunk, float32, each of shape [V].
        is_used: whether a request uses it.
        last_use: a number that grows with each use; 0: never.
    """

    slot: int
    num_cells: int
    isolation: str = ""
    trunk: list[int] = field(default_factory=list)
    paths: list[ExactPath] = field(default_factory=list)
    logits: dict[int, Tensor] = field(default_factory=dict)
    is_used: bool = False
    last_use: int = 0
    _next: int = 0
    _returned: list[int] = field(default_factory=list)

    @property
    def num_free(self) -> int:
        """Cells that have never been taken, or were returned."""
        return self.num_cells - self._next + len(self._returned)

    def extend_trunk(self, token_ids: Sequence[int]) -> None:
        """Note that the tokens after the trunk have been run in the cells behind it."""
        self.trunk += token_ids
        self._next = max(self._next, len(self.trunk))

    def cut(self, length: int) -> None:
        """Forget all tokens except the trunk's first."""
        del self.trunk[length:]
        self.paths.clear()
        self.logits = {position: row for position, row in self.logits.items() if position < length}
        self._next, self._returned = length, []

    def take(self, count: int, in_use: Iterable[Sequence[int]] = ()) -> tuple[int, ...]:
        """Take cells behind the trunk.

        Args:
            count: how many.
            in_use: the paths that are still needed. If the slot is full, all other cells count as free.
        """
        while len(self._returned) < count and self._next < self.num_cells:
            self._returned.append(self._next)
            self._next += 1
        if len(self._returned) < count:
            used = {cell for path in in_use for cell in path}
            self._returned = [cell for cell in range(len(self.trunk), self.num_cells) if cell not in used]
            self.paths.clear()
        assert len(self._returned) >= count, "a slot has fewer cells than its request was promised"
        taken, self._returned = self._returned[:count], self._returned[count:]
        return tuple(taken)

    def match(self, token_ids: Sequence[int]) -> tuple[int, ExactPath | None]:
        """How many of the first tokens of a prompt have keys and values here, and the path behind the trunk, if any."""
        length, best = num_common(self.trunk, token_ids), None
        trunk_length = length
        for path in self.paths:
            if trunk_length >= path.base:
                found = path.base + num_common(path.token_ids, token_ids[path.base :])
                if found > length:
                    length, best = found, path
        return length, best


def num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of their first tokens are equal."""
    length = min(len(one), len(other))
    if list(one[:length]) == list(other[:length]):
        return length
    # Whole blocks are compared at once: prompts have thousands of tokens.
    start = 0
    while one[start : start + 64] == other[start : start + 64]:
        start += 64
    return next(i for i in range(start, length) if one[i] != other[i])
