"""The runner for transformers' models: all forward passes, for prompts, superposed decode steps and verification."""

import inspect
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from superdraft.decoding.errors import UnsupportedModelError
from superdraft.decoding.model.fused_decoder import FusedDecoder
from superdraft.decoding.model.kv_cache import CachePlan, SlotKVCache, plan_cache, probe_layer_shapes
from superdraft.decoding.model.linear import CheckedConversion, Conversion, convert_modules, release_weights
from superdraft.decoding.model.native.decoder import NativeDecoder
from superdraft.decoding.model.segments import Grid, Segment, grid_of, to_device
from superdraft.decoding.model.step_graphs import (
    CudaGraphRecorder,
    Recorder,
    StepGraphs,
    StepTensors,
    can_be_recorded,
)

MAX_SHORT_ROWS = 16
"""Longer segments do not share a padded forward with others."""

SELF_CHECK_TOKENS = 6
_FEWEST_POSITIONS = 256  # cells read by the smallest graph; larger graphs read the next powers of two


class TorchRunner:
    """Runs a transformers causal LM over the slots of a KV cache.

    Any architecture works that takes `inputs_embeds`, a `Cache`, a 4-D attention mask and position ids. When the runner
    is built, a short check compares it with the plain, uncached model; a model that fails the check is refused. If a
    `CheckedConversion` remembers that the model has passed the check, there is none.

    The engine uses it as a `ModelRunner`. `prefill` and `decode` are short for a forward of texts that are alone in
    their slots; measurements use them.

    Args:
        model: the model, in evaluation mode.
        max_model_len: positions of the longest text.
        kv_memory_bytes: memory for all keys and values.
        num_slots: number of slots; None: as many as fit.
        convert: converts the linear layers to another weight format, after the check; None: they stay dense.
        recorder: records decode steps as graphs; None: CUDA graphs on a GPU, none on a CPU.

    Raises:
        UnsupportedModelError: the model cannot be run this way.
        ModelLoadError: the slots do not fit in the memory.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        max_model_len: int,
        kv_memory_bytes: int,
        num_slots: int | None = None,
        *,
        convert: Conversion | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.model = model
        self.device: torch.device = model.device
        self.max_model_len = max_model_len
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.embedding: nn.Module = model.get_input_embeddings()
        self._can_keep_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        config = model.config.get_text_config()
        self._layer_types: set[str] = set(getattr(config, "layer_types", None) or ())
        self._sliding_window: int | None = getattr(config, "sliding_window", None)
        with torch.inference_mode():
            like = self.embedding(torch.zeros(1, dtype=torch.long, device=self.device))
        is_known = FusedDecoder.supports(model)
        self._shapes = FusedDecoder.layer_shapes(model) if is_known else probe_layer_shapes(model)
        plan = plan_cache(self._shapes, like.element_size(), kv_memory_bytes, max_model_len, num_slots)
        self.num_slots, self.num_cells = plan.num_slots, plan.num_cells
        self.cache = SlotKVCache(self._shapes, plan, like)
        self._fused: FusedDecoder | None = None
        self._native: NativeDecoder | None = None
        # In float32 transformers' own forward is used: it is the reference for everything else.
        if model.dtype != torch.float32 and is_known:
            self._fused = FusedDecoder(model)
        if recorder is None and self.device.type == "cuda" and can_be_recorded(model):
            recorder = CudaGraphRecorder()
        self._graphs: StepGraphs | None = None
        if recorder is not None:
            self._graphs = StepGraphs(recorder)
        self._is_converted = False
        remembered = convert if isinstance(convert, CheckedConversion) else None
        # The check reads all dense weights, which takes longer than the rest of a start with converted layers at hand.
        if remembered is None or not remembered.has_passed:
            self._self_check()
        if convert is not None:
            self._convert(convert)
        if remembered is not None:
            remembered.record_pass()

    @property
    def forward_name(self) -> str:
        """Which forward runs: "native", or "fused" or "transformers" with the type of the weights."""
        if self._native is not None:
            return "native"
        weights = "converted" if self._is_converted else str(self.model.dtype).removeprefix("torch.")
        return f"{'transformers' if self._fused is None else 'fused'}, {weights}"

    def _convert(self, convert: Conversion) -> None:
        """Convert the linear layers. On a CPU the dense weights go."""
        head = self.model.get_output_embeddings()
        if self._fused is None:
            convert_modules(self.model, head, convert)
        else:
            self._fused.convert(convert)
            if NativeDecoder.supports(self._fused):
                windows = [self._window(layer.mask_type) for layer in self._fused.layers]
                self._native = NativeDecoder(self._fused, windows, self.max_model_len)
            if self.device.type == "cpu":
                release_weights(self.model, self.embedding)
        self._is_converted = True
        if self._graphs is not None:
            self._graphs.clear()  # they read the dense weights

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Embeddings of N tokens, as the model's embedding module returns them, shape [N, D]."""
        embeddings: Tensor = self.embedding(to_device(token_ids, self.device))
        return embeddings

    @torch.inference_mode()
    def forward(self, segments: Sequence[Segment], embeddings: Tensor, kept: Sequence[int]) -> Tensor:
        """Run rows of some texts and write their keys and values into the rows' own cells.

        Args:
            segments: S chains of rows. A row sees the positions of its own text up to itself.
            embeddings: the inputs of all N rows, segment after segment, shape [N, D].
            kept: rows whose logits to return.

        Returns:
            Logits, shape [len(kept), V].
        """
        return self._run(self.cache, segments, embeddings, kept)

    def prefill(
        self,
        slots: Sequence[int],
        token_ids: Sequence[Sequence[int]],
        starts: Sequence[int],
        num_logits: Sequence[int] | None = None,
    ) -> Tensor:
        """`forward` of tokens of some texts, each alone in its slot.

        Args:
            slots: one per text.
            token_ids: the tokens to run, at least one per text.
            starts: the position of each text's first token.
            num_logits: for how many of each text's last tokens to return logits; None: one.

        Returns:
            Logits after each text's last tokens, text after text, shape [sum of `num_logits`, V].
        """
        nums = [1] * len(slots) if num_logits is None else num_logits
        parts = zip(slots, starts, token_ids, strict=True)
        segments = [Segment.plain(slot, start, len(ids)) for slot, start, ids in parts]
        ends = accumulate(map(len, token_ids))
        kept = [row for end, num in zip(ends, nums, strict=True) for row in range(end - num, end)]
        return self.forward(segments, self.embed([token for ids in token_ids for token in ids]), kept)

    def decode(self, embeddings: Tensor, lengths: Sequence[int]) -> Tensor:
        """`forward` of one row in each of the slots [0, B), for texts that are alone in their slots.

        Args:
            embeddings: the rows' inputs, shape [B, D].
            lengths: positions before each row.

        Returns:
            Logits, shape [B, V].
        """
        segments = [Segment.plain(slot, length, 1) for slot, length in enumerate(lengths)]
        return self.forward(segments, embeddings, range(len(lengths)))

    def _run(self, cache: SlotKVCache, segments: Sequence[Segment], embeddings: Tensor, kept: Sequence[int]) -> Tensor:
        """`forward` in any cache."""
        if self._native is not None:
            return self._native(embeddings, cache, segments, kept)
        if self._graphs is not None and cache is self.cache and all(segment.count == 1 for segment in segments):
            return self._replayed(self._graphs, segments, embeddings)[to_device(kept, self.device)]
        # A grid has as many columns as its longest row, so long segments run one by one.
        groups = _groups_of_like_length(segments)
        if len(groups) == 1:
            return self._run_grid(cache, segments, embeddings, kept)
        begins = [0, *accumulate(segment.count for segment in segments)]
        logits: dict[int, Tensor] = {}
        for group in groups:
            rows = [row for index in group for row in range(begins[index], begins[index + 1])]
            places = {row: place for place, row in enumerate(rows)}
            own = [row for row in kept if row in places]
            part = self._run_grid(
                cache,
                [segments[index] for index in group],
                embeddings[to_device(rows, self.device)],
                [places[row] for row in own],
            )
            logits.update(zip(own, part, strict=True))
        return torch.stack([logits[row] for row in kept]) if kept else embeddings.new_zeros(0, self.vocab_size)

    def _run_grid(
        self, cache: SlotKVCache, segments: Sequence[Segment], embeddings: Tensor, kept: Sequence[int]
    ) -> Tensor:
        """Run segments of like lengths through the model's own or the fused forward."""
        grid = cache.select(segments)
        return self._forward(cache, grid, [grid.places[row] for row in kept], self._on_grid(grid, embeddings))

    def _on_grid(self, grid: Grid, embeddings: Tensor) -> Tensor:
        """The inputs of a grid: those of all rows [N, D] -> [B, T, D]."""
        width, shape = grid.positions.shape[1], grid.positions.shape
        if len(grid.places) == shape.numel() and grid.places == list(range(shape.numel())):
            return embeddings.view(*shape, -1)
        sources = [-1] * shape.numel()
        for row, place in enumerate(grid.places):
            sources[place] = row
        num_used = max(grid.places) // width + 1  # slots behind them repeat the last one
        for place in range(shape.numel()):
            if sources[place] < 0:
                sources[place] = sources[place - 1] if place < num_used * width else sources[place - width]
        return embeddings[to_device(sources, self.device)].view(*shape, -1)

    def _replayed(self, graphs: StepGraphs, segments: Sequence[Segment], embeddings: Tensor) -> Tensor:
        """A decode step by graph: one per number of slots, rows per slot and power of two of cells to read.

        Returns:
            The logits of all rows, shape [N, V].
        """
        furthest = max(segment.furthest for segment in segments)
        read_length = min(max(_FEWEST_POSITIONS, 1 << (furthest - 1).bit_length()), self.num_cells)
        grid, slots, cells = grid_of(segments, self.device, read_length)
        inputs = StepTensors(
            self._on_grid(grid, embeddings),
            to_device(slots, self.device),
            to_device(cells, self.device),
            grid.positions,
            grid.distances,
        )
        logits = graphs.run(tuple(grid.distances.shape), inputs, self._step)
        return logits.flatten(0, 1)[to_device(grid.places, self.device)]

    def _step(self, inputs: StepTensors) -> Tensor:
        """A decode step whose varying inputs are all on the device, so that a graph can capture it.

        Returns:
            Logits, shape [B, T, V].
        """
        self.cache.select_at(inputs.slots, inputs.cells, inputs.distances.shape[-1])
        return self._forward(self.cache, Grid(inputs.positions, inputs.distances, []), None, inputs.embeddings)

    @torch.inference_mode()
    def exact_logprobs(self, token_ids: Sequence[Sequence[int]], start: int = 0) -> list[Tensor]:
        """The exact next-token log-probabilities along whole token sequences, without cache or superposition.

        Args:
            token_ids: R sequences, none empty.
            start: the first position to return; earlier tokens are only context.

        Returns:
            For each sequence of length T the log-softmax after its tokens from `start` on, shape [T - start, V],
            float32.
        """
        longest = max(len(ids) for ids in token_ids)
        if self._fused is not None and self._is_converted:
            # The module's own weights may be gone.
            plan = CachePlan(len(token_ids), longest, self.cache.plan.bytes_per_position)
            scratch = SlotKVCache(self._shapes, plan, self.cache.layers[0].keys)
            segments = [Segment.plain(slot, 0, len(ids)) for slot, ids in enumerate(token_ids)]
            ends = accumulate(map(len, token_ids))
            kept = [row for end, ids in zip(ends, token_ids, strict=True) for row in range(end - len(ids) + start, end)]
            logits = self._run(scratch, segments, self.embed([token for ids in token_ids for token in ids]), kept)
            parts = torch.split(logits, [len(ids) - start for ids in token_ids])
            return [torch.log_softmax(rows.float(), dim=-1) for rows in parts]
        # Padding on the right: under a causal mask it cannot influence the real tokens before it.
        rows = [[*ids, *[ids[-1]] * (longest - len(ids))] for ids in token_ids]
        # Logits of every prompt token would be the largest tensor of all, so they are not computed.
        keep = {"logits_to_keep": longest - start} if self._can_keep_logits else {}
        logits = self.model(input_ids=to_device(rows, self.device), use_cache=False, **keep).logits
        logits = logits[:, start - longest :]
        return [torch.log_softmax(logits[row, : len(ids) - start].float(), dim=-1) for row, ids in enumerate(token_ids)]

    def _forward(self, cache: SlotKVCache, grid: Grid, wanted: Sequence[int] | None, embeddings: Tensor) -> Tensor:
        """Run a grid of B slots with T rows each.

        Args:
            cache: the cache, with the rows' cells selected.
            grid: positions and what each row sees.
            wanted: places b * T + t whose logits to return; None: all.
            embeddings: shape [B, T, D].

        Returns:
            Logits, shape [N, V]; with `wanted` None, [B, T, V].
        """
        masks, positions = self._attention_mask(grid.distances), grid.positions
        if self._fused is not None:
            kept = None if wanted is None else to_device(wanted, self.device)
            return self._fused(embeddings, positions, masks, cache, kept)
        keep, num_tokens = {}, positions.shape[1]
        columns = list(range(num_tokens)) if wanted is None else sorted({index % num_tokens for index in wanted})
        if self._can_keep_logits and wanted is not None:
            keep = {"logits_to_keep": to_device(columns, self.device)}
        logits: Tensor = self.model(
            inputs_embeds=embeddings,
            attention_mask=masks,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **keep,
        ).logits
        if wanted is None:
            return logits
        if not keep:
            columns = list(range(num_tokens))
        places = {column: place for place, column in enumerate(columns)}
        flat = [index // num_tokens * len(columns) + places[index % num_tokens] for index in wanted]
        return logits.flatten(0, 1)[to_device(flat, self.device)]

    def _attention_mask(self, distances: Tensor) -> Tensor | dict[str, Tensor]:
        """Additive mask of what each row may attend to, shape [B, 1, T, read_length]; or one per layer type."""
        distances = distances.unsqueeze(1)
        full = self._additive(distances >= 0)
        if self._sliding_window is None:
            return full
        sliding = self._additive((distances >= 0) & (distances < self._sliding_window))
        if len(self._layer_types) > 1:
            return {"full_attention": full, "sliding_attention": sliding}
        return full if self._layer_types == {"full_attention"} else sliding

    def _window(self, layer_type: str) -> int | None:
        """How many positions a position sees in a layer of this type, itself included; None: all."""
        is_full = (
            layer_type == "full_attention" if len(self._layer_types) > 1 else self._layer_types == {"full_attention"}
        )
        return None if is_full else self._sliding_window

    def _additive(self, visible: Tensor) -> Tensor:
        dtype = self.model.dtype
        return torch.zeros(visible.shape, dtype=dtype, device=self.device).masked_fill(~visible, torch.finfo(dtype).min)

    def _self_check(self) -> None:
        """Compare trees, masks and embeddings with the plain model, on a few tokens and two texts of different lengths.

        Raises:
            UnsupportedModelError: the model cannot be run this way, or gives other probabilities.
        """
        count = min(SELF_CHECK_TOKENS, self.max_model_len)
        ids = [(7 * i + 1) % min(self.vocab_size, 100) for i in range(count)]
        try:
            expected = self.exact_logprobs([ids, ids[1:]])
            texts = [ids, ids[1:]][: self.num_slots]
            # The last token of each text, once in its place and once in a cell behind another branch of the tree.
            prompts = [Segment.plain(slot, 0, len(text) - 1) for slot, text in enumerate(texts)]
            self.forward(prompts, self.embed([token for text in texts for token in text[:-1]]), [])
            rows = [
                Segment(slot, len(text) - 1, 1, len(text) - 1, (len(text) - 1 + twin,))
                for slot, text in enumerate(texts)
                for twin in range(2)
            ]
            last = self.embed([ids[-1]] * len(rows))
            num_steps = 1 if self._graphs is None else 2  # the first step of a shape is recorded, the next replayed
            for _ in range(num_steps):
                got = torch.log_softmax(self.forward(rows, last, range(len(rows))).float(), dim=-1)
        except UnsupportedModelError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} cannot be run with embeddings as input and a KV cache in slots: {error}"
            ) from error
        wanted = torch.stack([logprobs[-1] for logprobs in expected[: len(texts)] for _ in range(2)])
        # bfloat16: rounding alone moved a probability of the default model by 0.048.
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.15
        difference = float((got.exp() - wanted.exp()).abs().max())
        if not difference <= tolerance:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} gives different probabilities when run with embeddings as input and a KV "
                f"cache in slots (largest difference {difference:.3g}, allowed {tolerance}), so Superposed Decoding "
                "would be wrong with it. Use another model."
            )


def _groups_of_like_length(segments: Sequence[Segment]) -> list[list[int]]:
    """Indices of the segments to run together: all short ones, and each long one alone."""
    short = [index for index, segment in enumerate(segments) if segment.count <= MAX_SHORT_ROWS]
    return [*([short] if short else []), *([index] for index in range(len(segments)) if index not in short)]
