"""Families of decoders that the kernels run, and how to find their parts in GGUF files and in transformers' models.

Names of tensors are those of GGUF files; `_HUGGING_FACE` translates them. What a family does not say about itself is
read off its tensors: norms of heads, norms after a block, biases, joined matrices, a head of its own. A model is
refused if any tensor or parameter of it would be left unused: it would be another model than the one that is described
here. This takes the place of a comparison with another implementation at every start; the tests compare every family
with transformers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from superdraft.decoding.errors import BrokenModelError, UnsupportedModelError
from superdraft.decoding.gguf.file import GgufFile
from superdraft.decoding.model.decoder_spec import DecoderSpec, LayerSpec, Rotation, rotation_of
from superdraft.decoding.model.native.matrix import Matrix
from superdraft.decoding.model.native.structs import Activation

Item = TypeVar("Item")

_GEMMA_PATTERN, _SMOLLM3_PATTERN = 6, 4  # every so-manieth layer sees all positions, or has no rotary embeddings
_LAYERS_OF_GEMMA3_27B = 62


@dataclass(frozen=True, slots=True)
class Family:
    """What differs between families and is not in their tensors.

    Attributes:
        name: its name in GGUF files.
        model_types: its names in transformers.
        is_interleaved: in GGUF files the two numbers of a head that turn together are neighbours.
        activation: of gates.
        is_scaled: embeddings are multiplied by the root of the width.
        norm_offset: what transformers adds to the weights of norms.
        no_rotation_every: every so-manieth layer has no rotary embeddings; 0: all have.
        full_attention_every: in GGUF files that have a window, every so-manieth layer has none; 0: all have it.
    """

    name: str
    model_types: tuple[str, ...]
    is_interleaved: bool = False
    activation: Activation = Activation.SILU
    is_scaled: bool = False
    norm_offset: float = 0.0
    no_rotation_every: int = 0
    full_attention_every: int = 0


FAMILIES = (
    Family("llama", ("llama", "mistral"), is_interleaved=True),
    Family("qwen2", ("qwen2",)),
    Family("qwen3", ("qwen3",)),
    Family(
        "gemma3",
        ("gemma3_text",),
        activation=Activation.GELU_TANH,
        is_scaled=True,
        norm_offset=1.0,
        full_attention_every=_GEMMA_PATTERN,
    ),
    Family("smollm3", ("smollm3",), is_interleaved=True, no_rotation_every=_SMOLLM3_PATTERN),
    Family("granite", ("granite",), is_interleaved=True),
    Family("phi3", ("phi3",)),
)

_BY_GGUF_NAME = {family.name: family for family in FAMILIES}
_BY_MODEL_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}

_PARAMETERS = frozenset({
    "context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "attention.sliding_window", "attention.sliding_window_pattern",
    "attention.scale", "embedding_scale", "residual_scale", "logit_scale", "final_logit_softcapping",
    "rope.dimension_count", "rope.freq_base", "rope.freq_base_swa", "rope.scale_linear", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.attn_factor",
    "rope.scaling.finetuned", "rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
})  # fmt: skip
"""What a file may say about its decoder. Another parameter, of experts or caps say, is one that would be ignored."""

_HUGGING_FACE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_gate_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_HUGGING_FACE_WITH_POST_NORMS = _HUGGING_FACE | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def hugging_face_name(name: str, *, has_post_norms: bool) -> str | None:
    """The name in transformers of a tensor in a GGUF file; None: it has no such tensor.

    Args:
        name: the name in the file.
        has_post_norms: the model has norms after attention and after the gated layer.
    """
    stem, _, kind = name.rpartition(".")
    block, index, part = stem.split(".") if stem.startswith("blk.") else ("", "", stem)
    translated = (_HUGGING_FACE_WITH_POST_NORMS if has_post_norms else _HUGGING_FACE).get(part)
    if translated is None:
        return None
    return f"model.layers.{index}.{translated}.{kind}" if block else f"{translated}.{kind}"


class Tensors(Protocol):
    """A model's tensors by their names in GGUF files, and which of them were taken."""

    def matrix(self, name: str) -> Matrix | None:
        """A tensor [N, K]; None: there is none."""

    def vector(self, name: str) -> Tensor | None:
        """A tensor [K], float32; None: there is none."""

    def norm(self, name: str) -> Tensor | None:
        """The weight of a norm, as it is multiplied with."""

    def unused(self) -> list[str]:
        """Tensors that were not taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Description:
    """What a model says about itself, in its own words or a family's."""

    family: Family
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    epsilon: float
    attention_scale: float
    activation: Activation
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    logit_cap: float | None
    windows: tuple[int | None, ...]
    ropes: tuple[int | None, ...]
    rotations: tuple[Rotation, ...]
    orders_heads: bool  # of queries and keys: see `Family.is_interleaved`


def gguf_family(file: GgufFile) -> Family | None:
    """The family of a GGUF file; None: it is not one of `FAMILIES`."""
    return _BY_GGUF_NAME.get(str(file.metadata.get("general.architecture")))


def is_family(config: Any) -> bool:
    """Whether a transformers config is of one of `FAMILIES`."""
    return config.model_type in _BY_MODEL_TYPE


def spec_of_gguf(file: GgufFile, num_positions: int) -> DecoderSpec:
    """The decoder of a GGUF file. Its weights stay in the file.

    Args:
        file: the file.
        num_positions: of the longest text that will be run.

    Raises:
        UnsupportedModelError: it is of no family here, or has a parameter or a tensor that would be left unused.
        BrokenModelError: it lacks a tensor or a parameter, or one has another type or shape than it should.
    """
    family = gguf_family(file)
    if family is None:
        raise UnsupportedModelError(
            f"{file.path} is of the architecture {file.metadata.get('general.architecture')!r}; the kernels run "
            f"{', '.join(each.name for each in FAMILIES)}."
        )
    prefix = f"{family.name}."
    values = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    if unknown := sorted(values.keys() - _PARAMETERS):
        raise UnsupportedModelError(
            f"{file.path} has the parameter {prefix}{unknown[0]}, which the kernels do not know. Use --runner llamacpp."
        )
    tensors = _GgufTensors(file)
    try:
        if not 1 <= int(values["block_count"]) <= len(file.tensors):
            raise ValueError(f"{values['block_count']} layers in {len(file.tensors)} tensors")
        description = _describe_gguf(family, values, tensors, num_positions)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise BrokenModelError(f"{file.path} is damaged: a parameter is missing or has no use: {error!r}.") from error
    return _spec(description, tensors, str(file.path))


def spec_of_config(config: Any, tensors: Mapping[str, Tensor], num_positions: int, name: str) -> DecoderSpec | None:
    """The decoder of a transformers config.

    Args:
        config: of a causal LM.
        tensors: the model's tensors by name.
        num_positions: of the longest text that will be run.
        name: the model's, for errors.

    Returns:
        None: it is of no family here, or has something else than its family; transformers' own forward can run it.

    Raises:
        BrokenModelError: it lacks a tensor.
    """
    family = _BY_MODEL_TYPE.get(config.model_type)
    if family is None:
        return None
    try:
        description = _describe_config(family, config, num_positions)
        return _spec(description, _HuggingFaceTensors(tensors, family.norm_offset), name)
    except (UnsupportedModelError, ValueError, KeyError, AttributeError):
        return None


def _describe_gguf(
    family: Family, values: Mapping[str, Any], tensors: "_GgufTensors", num_positions: int
) -> _Description:
    num_layers, num_heads = int(values["block_count"]), int(values["attention.head_count"])
    width = int(values["embedding_length"])
    head_dim = int(values.get("attention.key_length", width // num_heads))
    num_kv_heads = int(values.get("attention.head_count_kv", num_heads))
    rotary_dim = int(values.get("rope.dimension_count", head_dim)) if family.name != "gemma3" else head_dim
    if num_kv_heads < 1 or not 1 <= rotary_dim <= head_dim <= width * num_heads:
        raise ValueError(f"{num_kv_heads} heads of keys, of {head_dim} numbers, {rotary_dim} of which are rotated")
    if values.get("attention.value_length", head_dim) != head_dim:
        raise ValueError("keys and values differ in length")
    max_positions = int(values["context_length"])
    window = int(values.get("attention.sliding_window", 0)) or None
    if window is not None and window < 0:
        raise ValueError(f"a window of {window} positions")
    every = int(values.get("attention.sliding_window_pattern", family.full_attention_every))
    is_full = [every > 0 and (index + 1) % every == 0 for index in range(num_layers)]
    rope = _gguf_rope(values, tensors)
    rotation = rotation_of(rope, rotary_dim, max_positions, num_positions)
    factors = tensors.vector("rope_freqs.weight")
    if factors is not None:  # Llama 3.1 and its like
        rotation = Rotation(rotation.frequencies / factors)
    rotations: tuple[Rotation, ...] = (rotation,)
    ropes: list[int | None] = [0] * num_layers
    if family.name == "gemma3":  # its layers with a window see too little to need scaling
        local = {"rope_theta": values.get("rope.freq_base_swa", 10_000.0)}
        rotations = (rotation, rotation_of(local, head_dim, max_positions, num_positions))
        ropes = [0 if full else 1 for full in is_full]
    if family.no_rotation_every:
        ropes = [None if (index + 1) % family.no_rotation_every == 0 else 0 for index in range(num_layers)]
    attention_scale, logit_cap = values.get("attention.scale"), values.get("final_logit_softcapping")
    if attention_scale is None:
        is_27b = family.name == "gemma3" and num_layers == _LAYERS_OF_GEMMA3_27B
        attention_scale = (width / num_heads if is_27b else head_dim) ** -0.5
    return _Description(
        family=family,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_positions=max_positions,
        epsilon=float(values["attention.layer_norm_rms_epsilon"]),
        attention_scale=float(attention_scale),
        activation=family.activation,
        embedding_scale=float(values.get("embedding_scale", math.sqrt(width) if family.is_scaled else 1.0)),
        residual_scale=float(values.get("residual_scale", 1.0)),
        logit_scale=1 / float(values.get("logit_scale", 1.0)),
        logit_cap=None if logit_cap is None else float(logit_cap),
        windows=tuple(None if full else window for full in is_full),
        ropes=tuple(ropes),
        rotations=rotations,
        orders_heads=family.is_interleaved,
    )


def _gguf_rope(values: Mapping[str, Any], tensors: "_GgufTensors") -> dict[str, Any]:
    """The rotary embeddings of a file, in transformers' terms."""
    rope: dict[str, Any] = {"rope_theta": values.get("rope.freq_base", 10_000.0)}
    long, short = tensors.vector("rope_factors_long.weight"), tensors.vector("rope_factors_short.weight")
    original = values.get("rope.scaling.original_context_length")
    if long is not None and short is not None:
        rope |= {"rope_type": "longrope", "long_factor": long.tolist(), "short_factor": short.tolist()}
        return rope | {
            "original_max_position_embeddings": original,
            "attention_factor": values.get("rope.scaling.attn_factor"),
        }
    kind = values.get("rope.scaling.type", "none")
    # Files from before 2024 have a factor for linear scaling alone.
    factor = values.get("rope.scaling.factor", values.get("rope.scale_linear"))
    if kind == "none" or (kind == "linear" and factor in (None, 1.0)):
        return rope
    if kind not in ("linear", "yarn") or factor is None:
        raise ValueError(f"rotary embeddings of the type {kind!r} with the factor {factor!r} are unknown")
    return rope | {
        "rope_type": kind,
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": values.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": values.get("rope.scaling.yarn_beta_slow"),
        "attention_factor": values.get("rope.scaling.attn_factor"),
    }


def _describe_config(family: Family, config: Any, num_positions: int) -> _Description:
    num_layers, num_heads = int(config.num_hidden_layers), int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // num_heads)
    given = config.rope_parameters
    by_type = given if "full_attention" in given else {"full_attention": given}
    share = float(by_type["full_attention"].get("partial_rotary_factor") or 1.0)
    dim, positions = int(head_dim * share), int(config.max_position_embeddings)
    kinds = list(by_type)
    layer_types = getattr(config, "layer_types", None) or ["full_attention"] * num_layers
    window = getattr(config, "sliding_window", None)
    if getattr(config, "layer_types", None) is None and window is not None:
        layer_types = ["sliding_attention"] * num_layers
    rotates = getattr(config, "no_rope_layers", None) or [1] * num_layers
    numbers = [kinds.index(kind) if kind in kinds else 0 for kind in layer_types]
    activation = getattr(config, "hidden_act", None) or config.hidden_activation
    scale = getattr(config, "query_pre_attn_scalar", None)
    return _Description(
        family=family,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=int(config.num_key_value_heads),
        head_dim=head_dim,
        max_positions=positions,
        epsilon=float(config.rms_norm_eps),
        attention_scale=float(getattr(config, "attention_multiplier", None) or (scale or head_dim) ** -0.5),
        activation={"silu": Activation.SILU, "gelu_pytorch_tanh": Activation.GELU_TANH}[activation],
        embedding_scale=float(
            getattr(config, "embedding_multiplier", None)
            or (math.sqrt(config.hidden_size) if family.is_scaled else 1.0)
        ),
        residual_scale=float(getattr(config, "residual_multiplier", None) or 1.0),
        logit_scale=1 / float(getattr(config, "logits_scaling", None) or 1.0),
        logit_cap=getattr(config, "final_logit_softcapping", None),
        windows=tuple(window if kind == "sliding_attention" else None for kind in layer_types),
        ropes=tuple(number if turns else None for number, turns in zip(numbers, rotates, strict=True)),
        rotations=tuple(rotation_of(rope, dim, positions, num_positions) for rope in by_type.values()),
        orders_heads=False,
    )


def _spec(about: _Description, tensors: Tensors, name: str) -> DecoderSpec:
    def matrix(tensor: str) -> Matrix:
        return _needed(tensors.matrix(tensor), tensor, name)

    def norm(tensor: str) -> Tensor:
        return _needed(tensors.norm(tensor), tensor, name)

    embedding = matrix("token_embd.weight")
    spec = DecoderSpec(
        family=about.family.name,
        num_heads=about.num_heads,
        num_kv_heads=about.num_kv_heads,
        head_dim=about.head_dim,
        max_positions=about.max_positions,
        epsilon=about.epsilon,
        attention_scale=about.attention_scale,
        activation=about.activation,
        embedding=embedding,
        embedding_scale=about.embedding_scale,
        residual_scale=about.residual_scale,
        layers=tuple(_layer(about, index, tensors, matrix, norm) for index in range(about.num_layers)),
        rotations=about.rotations,
        norm=norm("output_norm.weight"),
        head=tensors.matrix("output.weight") or embedding,
        logit_scale=about.logit_scale,
        logit_cap=about.logit_cap,
    )
    _check_vectors(spec, name)
    if unused := tensors.unused():
        raise UnsupportedModelError(
            f"{name} has the tensor {unused[0]}, which the kernels do not use in {about.family.name} models. Use "
            "--runner llamacpp."
        )
    return spec


def _layer(
    about: _Description,
    index: int,
    tensors: Tensors,
    matrix: Callable[[str], Matrix],
    norm: Callable[[str], Tensor],
) -> LayerSpec:
    block = f"blk.{index}."
    dim, sizes = about.head_dim, [about.num_heads * about.head_dim, *[about.num_kv_heads * about.head_dim] * 2]
    query_norm, key_norm = tensors.norm(f"{block}attn_q_norm.weight"), tensors.norm(f"{block}attn_k_norm.weight")
    joined = tensors.matrix(f"{block}attn_qkv.weight")
    qkv = tuple(matrix(f"{block}attn_{part}.weight") for part in "qkv") if joined is None else joined.split(sizes)
    biases = [tensors.vector(f"{block}attn_{part}.bias") for part in "qkv"]
    if about.orders_heads:
        qkv = (*(part.rows_in(_halves(part.shape[0], dim)) for part in qkv[:2]), qkv[2])
        biases = [
            bias if bias is None or part == 2 else bias[_halves(len(bias), dim).long()]
            for part, bias in enumerate(biases)
        ]
    gate_up = tensors.matrix(f"{block}ffn_gate_up.weight")
    down, up = matrix(f"{block}ffn_down.weight"), tensors.matrix(f"{block}ffn_up.weight")
    if gate_up is None and up is not None:
        gate = tensors.matrix(f"{block}ffn_gate.weight")
        gates = up.split([down.width] * 2) if gate is None else (gate, up)
    else:
        gates = _needed(gate_up, f"{block}ffn_up.weight", about.family.name).split([down.width] * 2)
    return LayerSpec(
        input_norm=norm(f"{block}attn_norm.weight"),
        qkv=qkv,
        qkv_bias=_joined_bias(biases),
        head_norms=None if query_norm is None or key_norm is None else (query_norm, key_norm),
        output=matrix(f"{block}attn_output.weight"),
        output_bias=tensors.vector(f"{block}attn_output.bias"),
        post_attention_norm=tensors.norm(f"{block}post_attention_norm.weight"),
        mlp_norm=norm(f"{block}ffn_norm.weight"),
        gate_up=gates,
        down=down,
        post_mlp_norm=tensors.norm(f"{block}post_ffw_norm.weight"),
        window=about.windows[index],
        rotation=about.ropes[index],
    )


def _check_vectors(spec: DecoderSpec, name: str) -> None:
    """Vectors are as long as what they are added to or multiplied with. `problem_of` looks at the matrices.

    Raises:
        BrokenModelError: one is not.
    """
    width, dim = spec.embedding.width, spec.head_dim
    found = [("the last norm", spec.norm, width)]
    for index, layer in enumerate(spec.layers):
        query_norm, key_norm = layer.head_norms or (None, None)
        rows = sum(part.shape[0] for part in layer.qkv)
        for what, vector, length in (
            ("the norm before attention", layer.input_norm, width),
            ("the norm after attention", layer.post_attention_norm, width),
            ("the norm before the gated layer", layer.mlp_norm, width),
            ("the norm after the gated layer", layer.post_mlp_norm, width),
            ("the norm of queries", query_norm, dim),
            ("the norm of keys", key_norm, dim),
            ("the bias of queries, keys and values", layer.qkv_bias, rows),
            ("the bias after attention", layer.output_bias, width),
        ):
            if vector is not None:
                found.append((f"{what} in layer {index}", vector, length))
    for what, vector, length in found:
        if len(vector) != length:
            raise BrokenModelError(f"{name} is damaged: {what} has {len(vector)} numbers, expected {length}.")


def _halves(num_rows: int, dim: int) -> Tensor:
    """Rows of heads in which neighbours turn together, in the order in which the halves of a head do, int32."""
    return torch.arange(num_rows, dtype=torch.int32).view(-1, dim // 2, 2).transpose(1, 2).flatten()


def _joined_bias(biases: list[Tensor | None]) -> Tensor | None:
    given = [bias for bias in biases if bias is not None]
    if 0 < len(given) < len(biases):
        raise UnsupportedModelError("only some of queries, keys and values have a bias, which the kernels do not know.")
    return torch.cat(given) if given else None


def _needed(found: Item | None, tensor: str, name: str) -> Item:
    if found is None:
        raise BrokenModelError(f"{name} lacks the tensor {tensor}.")
    return found


class _GgufTensors:
    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._left = set(file.tensors)

    def matrix(self, name: str) -> Matrix | None:
        return self._file.matrix(name) if self._take(name) else None

    def vector(self, name: str) -> Tensor | None:
        return self._file.vector(name) if self._take(name) else None

    norm = vector

    def unused(self) -> list[str]:
        return sorted(self._left)

    def _take(self, name: str) -> bool:
        self._left.discard(name)
        return name in self._file.tensors


class _HuggingFaceTensors:
    def __init__(self, tensors: Mapping[str, Tensor], norm_offset: float) -> None:
        self._tensors, self._norm_offset = tensors, norm_offset
        self._left = {name for name in tensors if not name.endswith("rotary_emb.inv_freq")}
        self._has_post_norms = any(name.endswith("pre_feedforward_layernorm.weight") for name in tensors)

    def matrix(self, name: str) -> Matrix | None:
        found = self._get(name)
        return None if found is None else Matrix.of(found)

    def vector(self, name: str) -> Tensor | None:
        found = self._get(name)
        return None if found is None else found.float()

    def norm(self, name: str) -> Tensor | None:
        found = self.vector(name)
        return None if found is None else found + self._norm_offset

    def unused(self) -> list[str]:
        return sorted(self._left)

    def _get(self, name: str) -> Tensor | None:
        full = hugging_face_name(name, has_post_norms=self._has_post_norms)
        if full is None:
            return None
        self._left.discard(full)
        return self._tensors.get(full)
