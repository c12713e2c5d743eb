"""The model's outputs after real texts, kept for later prompts that end there or have a draft that ends there."""

from collections import OrderedDict

from torch import Tensor

KEPT_BYTES = 128 * 1024**2


class KeptLogits:
    """Logits by the texts that they follow. They are large, so the least recently used make room.

    Args:
        num_bytes: memory for all of them.
    """

    def __init__(self, num_bytes: int = KEPT_BYTES) -> None:
        self._num_bytes = num_bytes
        self._logits: OrderedDict[tuple[str, int], Tensor] = OrderedDict()

    def put(self, isolation: str, key: int, logits: Tensor) -> Tensor:
        """Keep a copy of logits.

        Args:
            isolation: only requests with the same value may use them.
            key: the last of `text_keys` of the text before.
            logits: float32, shape [V].

        Returns:
            The copy.
        """
        copy = logits.clone()  # alone: a view would keep the logits of a whole batch in memory
        self._logits[isolation, key] = copy
        self._logits.move_to_end((isolation, key))
        while len(self._logits) * copy.nbytes > self._num_bytes:
            self._logits.popitem(last=False)
        return copy

    def get(self, isolation: str, key: int) -> Tensor | None:
        """The logits after a text; None: they are not there."""
        found = self._logits.get((isolation, key))
        if found is not None:
            self._logits.move_to_end((isolation, key))
        return found

    def forget(self) -> None:
        """Drop all."""
        self._logits.clear()
