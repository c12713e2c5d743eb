"""Forwards over a grid of rows, [slots, rows per slot]: transformers' own, and the fused one."""

import inspect
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from superdraft.decoding.model.fused_decoder import FusedDecoder
from superdraft.decoding.model.kv_cache import SlotKVCache
from superdraft.decoding.model.segments import Grid, Segment, to_device
from superdraft.decoding.model.transformers_cache import TransformersCache

MAX_SHORT_ROWS = 16
"""Longer segments do not share a padded forward with others."""


class Forward(Protocol):
    """A model's forward over the slots of a KV cache."""

    def __call__(
        self, embeddings: Tensor, cache: SlotKVCache, segments: Sequence[Segment], kept: Sequence[int]
    ) -> Tensor:
        """Run rows and write their keys and values into the cache; see `ModelRunner.forward`.

        Returns:
            Logits, shape [len(kept), V].
        """


class AttentionWindows:
    """What the layers of a model may see: how far back, by the type of the layer.

    Args:
        model: any causal LM.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        self._layer_types: set[str] = set(getattr(config, "layer_types", None) or ())
        self._size: int | None = getattr(config, "sliding_window", None)

    def of(self, layer_type: str) -> int | None:
        """How many positions a position sees in a layer of this type, itself included; None: all."""
        is_full = (
            layer_type == "full_attention" if len(self._layer_types) > 1 else self._layer_types == {"full_attention"}
        )
        return None if is_full else self._size

    def masks(self, distances: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """Additive mask of what each row may attend to, shape [B, 1, T, C]; or one per layer type.

        Args:
            distances: of a `Grid`, shape [B, T, C].
            dtype: of the mask.
        """
        distances = distances.unsqueeze(1)
        full = _additive(distances >= 0, dtype)
        if self._size is None:
            return full
        sliding = _additive((distances >= 0) & (distances < self._size), dtype)
        if len(self._layer_types) > 1:
            return {"full_attention": full, "sliding_attention": sliding}
        return full if self._layer_types == {"full_attention"} else sliding


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return zeros.masked_fill(~visible, torch.finfo(dtype).min)


class GridForward:
    """Runs rows as grids: all short segments in one, and each long one alone.

    Args:
        model: the model, whose own forward runs if there is no fused one.
        fused: the fused forward of the same model.
    """

    def __init__(self, model: PreTrainedModel, fused: FusedDecoder | None) -> None:
        self._model, self._fused = model, fused
        self._windows = AttentionWindows(model)
        self._vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self._can_keep_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def __call__(
        self, embeddings: Tensor, cache: SlotKVCache, segments: Sequence[Segment], kept: Sequence[int]
    ) -> Tensor:
        """See `Forward`."""
        groups = _groups_of_like_length(segments)
        if len(groups) == 1:
            return self._run_grid(embeddings, cache, segments, kept)
        begins = [0, *accumulate(segment.count for segment in segments)]
        logits: dict[int, Tensor] = {}
        for group in groups:
            rows = [row for index in group for row in range(begins[index], begins[index + 1])]
            places = {row: place for place, row in enumerate(rows)}
            own = [row for row in kept if row in places]
            part = self._run_grid(
                embeddings[to_device(rows, embeddings.device)],
                cache,
                [segments[index] for index in group],
                [places[row] for row in own],
            )
            logits.update(zip(own, part, strict=True))
        return torch.stack([logits[row] for row in kept]) if kept else embeddings.new_zeros(0, self._vocab_size)

    def _run_grid(
        self, embeddings: Tensor, cache: SlotKVCache, segments: Sequence[Segment], kept: Sequence[int]
    ) -> Tensor:
        """Run segments of like lengths."""
        grid = cache.select(segments)
        inputs, wanted = _on_grid(grid, embeddings), [grid.places[row] for row in kept]
        masks = self._windows.masks(grid.distances, self._model.dtype)
        if self._fused is not None:
            return self._fused(inputs, grid.positions, masks, cache, to_device(wanted, inputs.device))
        return self._run_model(inputs, grid.positions, masks, cache, wanted)

    def _run_model(
        self,
        inputs: Tensor,
        positions: Tensor,
        masks: Tensor | dict[str, Tensor],
        cache: SlotKVCache,
        wanted: Sequence[int],
    ) -> Tensor:
        """The model's own forward.

        Args:
            inputs: shape [B, T, D].
            positions: shape [B, T].
            masks: see `AttentionWindows.masks`.
            cache: with the rows' cells selected.
            wanted: places b * T + t whose logits to return.

        Returns:
            Logits, shape [N, V].
        """
        num_tokens = positions.shape[1]
        keep, columns = {}, list(range(num_tokens))
        if self._can_keep_logits:
            columns = sorted({index % num_tokens for index in wanted})
            keep = {"logits_to_keep": to_device(columns, inputs.device)}
        logits: Tensor = self._model(
            inputs_embeds=inputs,
            attention_mask=masks,
            position_ids=positions,
            past_key_values=TransformersCache(cache),
            use_cache=True,
            **keep,
        ).logits
        places = {column: place for place, column in enumerate(columns)}
        flat = [index // num_tokens * len(columns) + places[index % num_tokens] for index in wanted]
        return logits.flatten(0, 1)[to_device(flat, inputs.device)]


def _on_grid(grid: Grid, embeddings: Tensor) -> Tensor:
    """The inputs of a grid: those of all rows [N, D] -> [B, T, D]."""
    shape = grid.positions.shape
    if grid.places == list(range(shape.numel())):
        return embeddings.view(*shape, -1)
    sources = [-1] * shape.numel()
    for row, place in enumerate(grid.places):
        sources[place] = row
    for place in range(shape.numel()):
        if sources[place] < 0:  # a slot with fewer rows repeats its last one
            sources[place] = sources[place - 1]
    return embeddings[to_device(sources, embeddings.device)].view(*shape, -1)


def _groups_of_like_length(segments: Sequence[Segment]) -> list[list[int]]:
    """Indices of the segments to run together. A grid has as many columns as its longest row."""
    short = [index for index, segment in enumerate(segments) if segment.count <= MAX_SHORT_ROWS]
    return [*([short] if short else []), *([index] for index in range(len(segments)) if index not in short)]
