"""Model runner: all forward passes of a model, for prompts, superposed decode steps and verification."""

import inspect
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from superdraft.decoding.errors import UnsupportedModelError
from superdraft.decoding.model.fused_decoder import FusedDecoder
from superdraft.decoding.model.kv_cache import CachePlan, SlotKVCache, plan_cache, probe_layer_shapes, to_device
from superdraft.decoding.model.linear import Conversion, convert_modules, release_weights
from superdraft.decoding.model.native.decoder import NativeDecoder
from superdraft.decoding.model.step_graphs import CudaGraphRecorder, Recorder, StepGraphs, can_be_recorded

SELF_CHECK_TOKENS = 6
_FEWEST_POSITIONS = 256  # positions read by the smallest graph; larger graphs read the next powers of two


class ModelRunner:
    """Runs a transformers causal LM over the slots of a KV cache.

    Any architecture works that takes `inputs_embeds`, a `Cache`, a 4-D attention mask and position ids. When the runner
    is built, a short check compares it with the plain, uncached model; a model that fails the check is refused.

    The engine runs the model only through this interface (B running branches, D embedding width, V vocabulary size)::

        embed(token_ids)                              N tokens -> embeddings to superpose, [N, D]
        prefill(slots, token_ids, starts, num_logits) tokens of P prompts -> logits, [sum of num_logits, V]
        decode(embeddings, lengths)                   [B, D] -> logits, [B, V]; one new position in each slot of [0, B)
        exact_logprobs(token_ids, start)              R sequences -> R tensors [T - start, V]; does not use the cache
        cache                                         the slots and the prefix pool, see `SlotKVCache`
        num_slots, max_model_len, vocab_size, device  fixed when the runner is built

    `prefill` and `decode` write keys and values from the given start or length on. The caller keeps track of how many
    positions of each slot are in use.

    Args:
        model: the model, in evaluation mode.
        max_model_len: positions per slot.
        kv_memory_bytes: memory for all keys and values.
        num_slots: number of branches that can run at once; None: as many as fit.
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
        self._shapes = probe_layer_shapes(model)
        plan = plan_cache(self._shapes, like.element_size(), kv_memory_bytes, max_model_len, num_slots)
        self.num_slots = plan.num_slots
        self.cache = SlotKVCache(self._shapes, plan, like)
        self._fused: FusedDecoder | None = None
        self._native: NativeDecoder | None = None
        # In float32 transformers' own forward is used: it is the reference for everything else.
        if model.dtype != torch.float32 and FusedDecoder.supports(model):
            self._fused = FusedDecoder(model)
        if recorder is None and self.device.type == "cuda" and can_be_recorded(model):
            recorder = CudaGraphRecorder()
        self._graphs: StepGraphs | None = None
        if recorder is not None:
            self._graphs = StepGraphs(recorder)
            # A graph stores the addresses of its tensors, so each step's inputs and outputs are copied through these.
            self._embeddings = like.new_zeros(plan.num_slots, like.shape[-1])
            self._positions = torch.zeros(plan.num_slots, dtype=torch.long, device=self.device)
            self._logits = like.new_zeros(plan.num_slots, self.vocab_size)
        self._is_converted = False
        self._self_check()
        if convert is not None:
            self._convert(convert)

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
    def prefill(
        self,
        slots: Sequence[int],
        token_ids: Sequence[Sequence[int]],
        starts: Sequence[int],
        num_logits: Sequence[int] | None = None,
    ) -> Tensor:
        """Run tokens of P prompts in one forward and write their keys and values into the prompts' slots.

        Args:
            slots: one per prompt.
            token_ids: the tokens to run, at least one per prompt.
            starts: the position of each prompt's first token.
            num_logits: for how many of each prompt's last tokens to return logits; None: one.

        Returns:
            Logits after each prompt's last tokens, prompt after prompt, shape [sum of `num_logits`, V].
        """
        nums = [1] * len(slots) if num_logits is None else list(num_logits)
        return self._run(self.cache, slots, token_ids, starts, nums)

    @torch.inference_mode()
    def decode(self, embeddings: Tensor, lengths: Sequence[int]) -> Tensor:
        """Run one decode step over slots [0, B), with one row and one new position each.

        Args:
            embeddings: superposed embeddings, shape [B, D].
            lengths: how many positions of each slot are in use, length B.

        Returns:
            Logits, shape [B, V].
        """
        if self._graphs is not None:
            return self._replayed(self._graphs, embeddings, lengths)
        if self._native is not None:
            rows = range(len(lengths))
            return self._native(embeddings, self.cache, rows, lengths, [1] * len(rows), rows)
        positions = self.cache.select(range(len(lengths)), lengths, 1)
        return self._forward(self.cache, positions, None, inputs_embeds=embeddings.unsqueeze(1))[:, 0]

    def _run(
        self,
        cache: SlotKVCache,
        slots: Sequence[int],
        token_ids: Sequence[Sequence[int]],
        starts: Sequence[int],
        nums: Sequence[int],
    ) -> Tensor:
        """`prefill` in any cache, with the number of logits of each prompt."""
        if self._native is not None:
            counts = [len(ids) for ids in token_ids]
            ends = accumulate(counts)
            kept = [row for end, num in zip(ends, nums, strict=True) for row in range(end - num, end)]
            embeddings = self.embed([token for ids in token_ids for token in ids])
            return self._native(embeddings, cache, slots, starts, counts, kept)
        widest = max(len(ids) for ids in token_ids)
        if max(starts) + widest > cache.plan.max_len and len(slots) > 1:
            # Padding would exceed the end of a slot.
            rows = zip(slots, token_ids, starts, nums, strict=True)
            return torch.cat([self._run(cache, [slot], [ids], [start], [num]) for slot, ids, start, num in rows])
        positions = cache.select(slots, starts, widest)
        # Padding is written after the prompt's end, where later tokens overwrite it before they read it.
        padded = [[*ids, *[ids[-1]] * (widest - len(ids))] for ids in token_ids]
        wanted = [
            row * widest + column
            for row, (ids, num) in enumerate(zip(token_ids, nums, strict=True))
            for column in range(len(ids) - num, len(ids))
        ]
        return self._forward(cache, positions, wanted, input_ids=to_device(padded, self.device))

    def _replayed(self, graphs: StepGraphs, embeddings: Tensor, lengths: Sequence[int]) -> Tensor:
        """`decode` by graph. There is one graph per number of rows and power of two of positions to read."""
        num_rows = len(lengths)
        read_length = min(max(_FEWEST_POSITIONS, 1 << max(lengths).bit_length()), self.max_model_len)
        inputs, positions, logits = (part[:num_rows] for part in (self._embeddings, self._positions, self._logits))
        inputs.copy_(embeddings)
        positions.copy_(to_device(lengths, self.device))
        graphs.run((num_rows, read_length), lambda: logits.copy_(self._decode_at(inputs, positions, read_length)))
        return logits.clone()

    def _decode_at(self, embeddings: Tensor, positions: Tensor, read_length: int) -> Tensor:
        """A decode step whose varying inputs are all on the device, so that a graph can capture it.

        Args:
            embeddings: superposed embeddings, shape [B, D].
            positions: the position of each row's new keys and values, shape [B].
            read_length: positions of each slot that attention reads; those after a row's own are masked.

        Returns:
            Logits, shape [B, V].
        """
        positions = positions.unsqueeze(1)
        self.cache.select_at(positions, read_length)
        return self._forward(self.cache, positions, None, inputs_embeds=embeddings.unsqueeze(1))[:, 0]

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
            counts = [len(ids) - start for ids in token_ids]
            plan = CachePlan(len(token_ids), longest, 0, self.cache.plan.bytes_per_position)
            scratch = SlotKVCache(self._shapes, plan, self.cache.layers[0].keys)
            logits = self._run(scratch, range(len(token_ids)), token_ids, [0] * len(token_ids), counts)
            return [torch.log_softmax(rows.float(), dim=-1) for rows in torch.split(logits, counts)]
        # Padding on the right: under a causal mask it cannot influence the real tokens before it.
        rows = [[*ids, *[ids[-1]] * (longest - len(ids))] for ids in token_ids]
        # Logits of every prompt token would be the largest tensor of all, so they are not computed.
        keep = {"logits_to_keep": longest - start} if self._can_keep_logits else {}
        logits = self.model(input_ids=to_device(rows, self.device), use_cache=False, **keep).logits
        logits = logits[:, start - longest :]
        return [torch.log_softmax(logits[row, : len(ids) - start].float(), dim=-1) for row, ids in enumerate(token_ids)]

    def _forward(self, cache: SlotKVCache, positions: Tensor, wanted: Sequence[int] | None, **inputs: Tensor) -> Tensor:
        """Logits at the indices b * T + t in `wanted`, shape [N, V]; with None all logits, shape [B, T, V]."""
        if self._fused is not None:
            embeddings = inputs["inputs_embeds"] if "inputs_embeds" in inputs else self.embedding(inputs["input_ids"])
            kept = None if wanted is None else to_device(wanted, self.device)
            return self._fused(embeddings, positions, self._attention_mask(cache, positions), cache, kept)
        keep, num_tokens = {}, positions.shape[1]
        columns = list(range(num_tokens)) if wanted is None else sorted({index % num_tokens for index in wanted})
        if self._can_keep_logits and wanted is not None:
            keep = {"logits_to_keep": to_device(columns, self.device)}
        logits: Tensor = self.model(
            attention_mask=self._attention_mask(cache, positions),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **keep,
            **inputs,
        ).logits
        if wanted is None:
            return logits
        if not keep:
            columns = list(range(num_tokens))
        places = {column: place for place, column in enumerate(columns)}
        flat = [index // num_tokens * len(columns) + places[index % num_tokens] for index in wanted]
        return logits.flatten(0, 1)[to_device(flat, self.device)]

    def _attention_mask(self, cache: SlotKVCache, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """Additive mask of what each position may attend to, shape [B, 1, T, read_length]; or one per layer type."""
        keys = torch.arange(cache.read_length, device=self.device)
        distance = positions[:, None, :, None] - keys
        full = self._additive(distance >= 0)
        if self._sliding_window is None:
            return full
        sliding = self._additive((distance >= 0) & (distance < self._sliding_window))
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
        """Compare slots, masks and embeddings with the plain model, on a few tokens and two slots of different lengths.

        Raises:
            UnsupportedModelError: the model cannot be run this way, or gives other probabilities.
        """
        count = min(SELF_CHECK_TOKENS, self.max_model_len)
        ids = [(7 * i + 1) % min(self.vocab_size, 100) for i in range(count)]
        try:
            expected = self.exact_logprobs([ids, ids[1:]])
            rows, lengths = [ids[-1]], [count - 1]
            if self.num_slots > 1:
                rows, lengths = [ids[-1]] * 2, [count - 1, count - 2]
            self.prefill(range(len(rows)), [ids[:-1], ids[1:-1]][: len(rows)], [0] * len(rows))
            got = torch.log_softmax(self.decode(self.embed(rows), lengths).float(), dim=-1)
            if self._graphs is not None:  # the first step of a shape is run and recorded, the next is replayed
                got = torch.log_softmax(self.decode(self.embed(rows), lengths).float(), dim=-1)
        except UnsupportedModelError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} cannot be run with embeddings as input and a KV cache in slots: {error}"
            ) from error
        wanted = torch.stack([logprobs[-1] for logprobs in expected[: len(rows)]])
        # bfloat16: rounding alone moved a probability of the default model by 0.048.
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.15
        difference = float((got.exp() - wanted.exp()).abs().max())
        if not difference <= tolerance:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} gives different probabilities when run with embeddings as input and a KV "
                f"cache in slots (largest difference {difference:.3g}, allowed {tolerance}), so Superposed Decoding "
                "would be wrong with it. Use another model."
            )
