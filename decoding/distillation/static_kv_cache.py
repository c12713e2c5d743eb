"""A KV cache of fixed size for rows that run in step.

The position to write is a tensor, so a CUDA graph can be recorded once and replayed at every position. transformers'
own static layers of models with a sliding window branch on the length in Python, which no graph can do. Here all layers
keep every position; what a row may see is the mask's affair.
"""

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from superdraft.decoding.model.kv_cache import probe_layer_shapes


class _StaticLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """One layer's keys and values, shape [B, H, length, Dh]."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self.read_length = 0
        self._position = position

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is lazy here; required by the interface."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write [B, H, 1, Dh] at the current position; give back what is read, [B, H, read_length, Dh]."""
        self.keys.index_copy_(2, self._position, key_states)
        self.values.index_copy_(2, self._position, value_states)
        return self.keys[:, :, : self.read_length], self.values[:, :, : self.read_length]

    def get_seq_length(self) -> int:
        return self.read_length - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 (the interface's)
        return self.read_length, 0

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


class StaticKVCache(Cache):  # type: ignore[misc]  # transformers has no types
    """Keys and values of all layers, allocated once.

    Args:
        model: gives the layers' shapes, dtype and device.
        num_rows: B.
        length: positions of each row.

    Raises:
        UnsupportedModelError: a layer keeps something other than keys and values.
    """

    def __init__(self, model: PreTrainedModel, num_rows: int, length: int) -> None:
        self._position = torch.zeros(1, dtype=torch.long, device=model.device)
        layers = []
        for shape in probe_layer_shapes(model):
            # Zeros and not empty memory: a NaN in a position that is not yet written would survive the mask.
            keys, values = (
                torch.zeros(num_rows, shape.num_heads, length, dim, dtype=model.dtype, device=model.device)
                for dim in (shape.key_dim, shape.value_dim)
            )
            layers.append(_StaticLayer(keys, values, self._position))
        super().__init__(layers=layers)

    @property
    def position(self) -> Tensor:
        """The position that the next forward writes, of all rows and layers, shape [1]; set in place."""
        return self._position

    def read(self, length: int) -> None:
        """Let the next forward read positions [0, length)."""
        for layer in self.layers:
            layer.read_length = length
