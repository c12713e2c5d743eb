"""The slots of a KV cache as transformers' models take them, and what such a model writes into one."""

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from superdraft.decoding.errors import UnsupportedModelError
from superdraft.decoding.model.kv_cache import LayerShape, SlotKVCache, SlotLayer


class _Layer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """One layer's slots. transformers calls `update` from inside each attention layer."""

    is_sliding = False

    def __init__(self, layer: SlotLayer) -> None:
        super().__init__()
        self.keys, self.values = layer.keys, layer.values
        self.is_initialized = True
        self._layer = layer

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is lazy here; required by the interface."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """See `SlotLayer.update`."""
        return self._layer.update(key_states, value_states)

    def get_seq_length(self) -> int:
        return self._layer.window.read_length - 1  # masks and positions are given, so no model relies on this

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 (required by the interface)
        return self._layer.window.read_length, 0

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


class TransformersCache(Cache):  # type: ignore[misc]  # transformers has no types
    """A `SlotKVCache`, with the cells of the next forward selected, for a model of transformers."""

    def __init__(self, cache: SlotKVCache) -> None:
        super().__init__(layers=[_Layer(layer) for layer in cache.layers])


def probe_layer_shapes(model: PreTrainedModel) -> list[LayerShape]:
    """Run one token to see what each layer writes into a KV cache; works for any architecture.

    Raises:
        UnsupportedModelError: a layer stores something other than keys and values.
    """
    cache = DynamicCache()
    with torch.inference_mode():
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        model(input_ids=token, past_key_values=cache, use_cache=True)
    shapes = []
    for index, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.dim() != 4 or keys.shape[2] != 1:
            raise UnsupportedModelError(
                f"Layer {index} of this {type(model).__name__} does not store keys and values per position, so its "
                "drafts cannot share a KV cache. Use a model with attention in all layers."
            )
        shapes.append(LayerShape(keys.shape[1], keys.shape[3], values.shape[3]))
    if not shapes:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not write to a KV cache. Use a causal model with attention."
        )
    return shapes
