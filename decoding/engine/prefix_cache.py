"""Which prompts' keys and values are kept, and where. Plain Python: the tensors are in `kv_cache`.

A trie over token ids. Each node is one token after all those above it, and owns one position of the prefix pool. Every
request takes the longest path that its prompt shares with any earlier one, whoever sent it; typing on one key at a
time, that is all but the last token or two.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class _Node:
    token_id: int
    parent: "_Node | None"
    position: int
    children: dict[int, "_Node"] = field(default_factory=dict)


class PrefixCache:
    """Longest-prefix look-up over the positions of a pool, least recently used tokens leave first.

    Args:
        num_positions: size of the pool; 0 keeps nothing.
    """

    def __init__(self, num_positions: int) -> None:
        self.num_positions = num_positions
        self._unused = 0  # positions from here on were never given out
        self._root = _Node(-1, None, -1)
        # Least recently used first. A path is touched from its end to its beginning, so a node is always more recent
        # than its children and the first one here is a leaf.
        self._by_use: OrderedDict[_Node, None] = OrderedDict()

    def match(self, token_ids: Sequence[int]) -> list[int]:
        """Positions of the longest kept prefix of `token_ids`, in order."""
        path = self._walk(token_ids)
        self._touch(path)
        return [node.position for node in path]

    def insert(self, token_ids: Sequence[int]) -> tuple[int, list[int]]:
        """Keep a prompt.

        Returns:
            `(start, positions)`: the keys and values of `token_ids[start:]` have to be written to these positions.
            Fewer than there are tokens if the pool is too small for the whole prompt.
        """
        path = self._walk(token_ids)
        self._touch(path)
        start, positions = len(path), []
        node = path[-1] if path else self._root
        for token_id in token_ids[start : self.num_positions]:
            child = _Node(token_id, node, self._take_position())
            node.children[token_id] = child
            self._by_use[child] = None
            positions.append(child.position)
            path.append(child)
            node = child
        self._touch(path)
        return start, positions

    def clear(self) -> None:
        """Keep nothing of what was inserted so far."""
        self._unused = 0
        self._root = _Node(-1, None, -1)
        self._by_use.clear()

    def _walk(self, token_ids: Sequence[int]) -> list[_Node]:
        path: list[_Node] = []
        node = self._root
        for token_id in token_ids:
            child = node.children.get(token_id)
            if child is None:
                break
            path.append(child)
            node = child
        return path

    def _touch(self, path: list[_Node]) -> None:
        for node in reversed(path):
            self._by_use.move_to_end(node)

    def _take_position(self) -> int:
        if self._unused < self.num_positions:
            self._unused += 1
            return self._unused - 1
        leaf, _ = self._by_use.popitem(last=False)
        assert leaf.parent is not None
        del leaf.parent.children[leaf.token_id]
        return leaf.position
