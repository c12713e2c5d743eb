"""Tiny GGUF files with random weights."""

import json
from pathlib import Path

import gguf
import numpy as np
from support.models import EOS_TOKEN, tiny_tokenizer

HIDDEN, FFN, HEADS, LAYERS = 32, 64, 4, 2
CONTEXT = 512
END_OF_TURN = "<|im_end|>"


def write_gguf(
    path: Path, pre: str = "smollm", *, quantised: bool = True, architecture: str = "llama", **metadata: float
) -> Path:
    """A tiny Llama, or a model with the same tensors, with tied embeddings; returns `path`.

    Args:
        path: the file to write.
        pre: how text is split before byte-pair encoding.
        quantised: its matrices are in 8 bits; False: in float32.
        architecture: its name.
        metadata: further numbers of the model's metadata.
    """
    vocabulary = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = [*sorted(vocabulary["vocab"], key=vocabulary["vocab"].__getitem__), END_OF_TURN]
    special = [token in (EOS_TOKEN, END_OF_TURN) for token in tokens]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if s else gguf.TokenType.NORMAL for s in special])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(tokens.index(END_OF_TURN))
    for key, value in metadata.items():
        writer.add_float32(f"{architecture}.{key}", value)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        weights = random.normal(0, 0.4, shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0 if quantised else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens), HIDDEN)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", HIDDEN, HIDDEN)
        add(f"blk.{layer}.ffn_gate.weight", FFN, HIDDEN)
        add(f"blk.{layer}.ffn_up.weight", FFN, HIDDEN)
        add(f"blk.{layer}.ffn_down.weight", HIDDEN, FFN)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(HIDDEN, dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
