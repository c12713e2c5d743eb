"""GGUF files of transformers models, written as llama.cpp's converter writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer

ARCHITECTURES = {
    **{name: name for name in ("llama", "qwen2", "qwen3", "smollm3", "granite", "phi3")},
    "gemma3_text": "gemma3",
}
_INTERLEAVED = ("llama", "smollm3", "granite")
_SPECIALS = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unk_token_id", "pad": "pad_token_id"}


def export_gguf(
    path: Path,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    pre: str | None = "gpt-2",
    *,
    quantised: bool = False,
    rope_factors: NDArray[np.float32] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model and its tokenizer; returns `path`.

    Args:
        path: the file to write.
        model: of an architecture in `ARCHITECTURES`.
        tokenizer: byte-level; with `pre` None, SentencePiece.
        pre: the name of the way in which a byte-level tokenizer splits text.
        quantised: matrices in Q8_0; False: in float32.
        rope_factors: by what frequencies are divided, [Dh / 2].
        metadata: further numbers, by key without the architecture.
    """
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if architecture != "gemma3":
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    if head_dim * config.num_attention_heads != config.hidden_size or architecture == "gemma3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if architecture in ("gemma3", "phi3"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    for key, value in (metadata or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{architecture}.{key}", value)
    add_tokenizer(writer, tokenizer, pre)
    _add_tensors(writer, model, architecture, quantised=quantised)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors)
    _finish(writer)
    return path


def export_vocabulary(path: Path, tokenizer: transformers.PreTrainedTokenizerBase, pre: str | None) -> Path:
    """Write a file with a tokenizer alone; returns `path`. Arguments as for `export_gguf`."""
    writer = gguf.GGUFWriter(path, "llama" if pre is not None else "gemma3")
    for add, value in (
        (writer.add_context_length, 64),
        (writer.add_embedding_length, 32),
        (writer.add_block_count, 1),
        (writer.add_feed_forward_length, 32),
        (writer.add_head_count, 1),
    ):
        add(value)
    add_tokenizer(writer, tokenizer, pre)
    _finish(writer)
    return path


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: transformers.PreTrainedTokenizerBase, pre: str | None) -> None:
    """Add the tokens, their types, merges and special ids."""
    backend: Tokenizer = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    tokens = [backend.id_to_token(token_id) for token_id in range(backend.get_vocab_size())]
    added = {token_id: token.special for token_id, token in tokenizer.added_tokens_decoder.items()}
    types = [gguf.TokenType.NORMAL] * len(tokens)
    for token_id, token in enumerate(tokens):
        if token_id in added:
            types[token_id] = gguf.TokenType.CONTROL if added[token_id] else gguf.TokenType.USER_DEFINED
        elif pre is None and token.startswith("<0x"):
            types[token_id] = gguf.TokenType.BYTE
    if pre is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([-float(token_id) for token_id in range(len(tokens))])
        writer.add_add_space_prefix(False)
        writer.add_add_bos_token(True)
        types[tokens.index("<unk>")] = gguf.TokenType.UNKNOWN
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, attribute in _SPECIALS.items():
        if (token_id := getattr(tokenizer, attribute)) is not None:
            getattr(writer, f"add_{name}_token_id")(token_id)


def _add_tensors(
    writer: gguf.GGUFWriter, model: transformers.PreTrainedModel, architecture: str, *, quantised: bool
) -> None:
    config = model.config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = name.rpartition(".")
        weights = tensor.float().numpy()
        if architecture in _INTERLEAVED and (parts := heads.get(stem.rpartition(".")[2])):
            # Rotary pairs lie side by side in the file, half a head apart in transformers.
            halves = weights.reshape(parts, 2, -1, *weights.shape[1:])
            weights = halves.swapaxes(1, 2).reshape(weights.shape)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            weights = weights + 1
        is_q8 = quantised and weights.ndim == 2
        kind = gguf.GGMLQuantizationType.Q8_0 if is_q8 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(np.ascontiguousarray(weights), kind)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", data, raw_dtype=kind)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
