"""The prefix cache: which prompts' keys and values are kept, and where. Plain Python; `kv_cache` has the tensors.

A trie over token ids. Each node is one token after all tokens above it, and owns one position of the prefix pool. A
request uses the longest path that its prompt shares with any earlier prompt of the same isolation. For a prompt that
grows key by key, that is all tokens except the last one or two.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

_Key = int | tuple[str, int]
"""A token id. The first token of a prompt comes with its isolation, which keeps whole branches of the trie apart."""


@dataclass(slots=True, eq=False)
class _Node:
    key: _Key
    parent: "_Node | None"
    position: int
    children: dict[_Key, "_Node"] = field(default_factory=dict)


class PrefixCache:
    """Longest-prefix look-up over the positions of a pool. The least recently used tokens are evicted first.

    Args:
        num_positions: size of the pool; 0 keeps nothing.
    """

    def __init__(self, num_positions: int) -> None:
        self.num_positions = num_positions
        self._unused = 0  # positions from here on have never been given out
        self._root = _Node(-1, None, -1)
        # Least recently used first. A path is touched from its end to its beginning, so a node is always more recent
        # than its children and the first one here is a leaf.
        self._by_use: OrderedDict[_Node, None] = OrderedDict()

    def match(self, token_ids: Sequence[int], isolation: str) -> list[int]:
        """Positions of the longest prefix of `token_ids` that was kept with this isolation, in order."""
        path = self._walk(token_ids, isolation)
        self._touch(path)
        return [node.position for node in path]

    def insert(self, token_ids: Sequence[int], isolation: str) -> tuple[int, list[int]]:
        """Keep a prompt.

        Args:
            token_ids: the prompt.
            isolation: who finds it again.

        Returns:
            `(start, positions)`: the keys and values of `token_ids[start:]` must be written to these positions. If the
            pool is too small for the whole prompt, there are fewer positions than tokens.
        """
        path = self._walk(token_ids, isolation)
        self._touch(path)
        start, positions = len(path), []
        node = path[-1] if path else self._root
        for key in _keys(token_ids, isolation)[start : self.num_positions]:
            child = _Node(key, node, self._take_position())
            node.children[key] = child
            self._by_use[child] = None
            positions.append(child.position)
            path.append(child)
            node = child
        self._touch(path)
        return start, positions

    def clear(self) -> None:
        """Drop everything that was inserted so far."""
        self._unused = 0
        self._root = _Node(-1, None, -1)
        self._by_use.clear()

    def _walk(self, token_ids: Sequence[int], isolation: str) -> list[_Node]:
        path: list[_Node] = []
        node = self._root
        for key in _keys(token_ids, isolation):
            child = node.children.get(key)
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
        del leaf.parent.children[leaf.key]
        return leaf.position


def _keys(token_ids: Sequence[int], isolation: str) -> list[_Key]:
    return [(isolation, token_ids[0]), *token_ids[1:]] if token_ids else []
