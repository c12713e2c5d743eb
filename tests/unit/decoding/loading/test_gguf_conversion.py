import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from support.models import EOS_TOKEN, tiny_tokenizer
from transformers import AutoConfig, GenerationConfig

from superdraft.decoding.loading.gguf_conversion import convert_gguf
from superdraft.decoding.loading.loader import load_model

HIDDEN, FFN, HEADS, LAYERS = 32, 64, 4, 2
END_OF_TURN = "<|im_end|>"
TEXT = "Thank you for 12  3 naïve\n\n things , it 's"


def write_gguf(path: Path, pre: str = "smollm") -> None:
    """A tiny Llama with tied embeddings, its linear layers quantised to 8 bits."""
    vocabulary = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = [*sorted(vocabulary["vocab"], key=vocabulary["vocab"].__getitem__), END_OF_TURN]
    special = [token in (EOS_TOKEN, END_OF_TURN) for token in tokens]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
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
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        weights = random.normal(0, 0.4, shape).astype(np.float32)
        quantised = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

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


@pytest.fixture
def converted(tmp_path) -> Path:
    write_gguf(tmp_path / "tiny.gguf")
    folder = tmp_path / "converted"
    folder.mkdir()
    convert_gguf(tmp_path / "tiny.gguf", folder)
    return folder


def test_the_converted_model_equals_the_gguf_file(converted, capfd):
    capfd.readouterr()
    from_gguf = load_model(str(converted.parent / "tiny.gguf"), device="cpu")
    loaded = load_model(str(converted), device="cpu")
    said = "Reading tiny.gguf (0 MB); expanding its weights may take minutes.\n"
    assert capfd.readouterr() == ("", said)
    assert (from_gguf.name, from_gguf.path) == ("tiny", converted.parent / "tiny.gguf")
    token_ids = loaded.tokenizer.encode(TEXT)
    assert token_ids == from_gguf.tokenizer.encode(TEXT)
    with torch.inference_mode():
        logits = [one.model(torch.tensor([token_ids])).logits for one in (loaded, from_gguf)]
    assert torch.equal(logits[0], logits[1])
    assert logits[0].std() > 0.1


def test_nothing_says_that_the_weights_were_quantised(converted):
    config = AutoConfig.from_pretrained(converted)
    assert not hasattr(config, "quantization_config")
    assert config.dtype == torch.float32
    assert "gguf" not in (converted / "config.json").read_text()


def test_both_the_end_of_a_turn_and_the_document_separator_end_a_text(converted):
    assert GenerationConfig.from_pretrained(converted).eos_token_id == [300, 0]


def test_text_survives_the_tokenizer_and_digits_stand_alone(converted):
    tokenizer = load_model(str(converted), device="cpu").tokenizer
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.clean_up_tokenization_spaces is False
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("  3 12")
    assert [piece for piece, _ in pieces] == ["ĠĠ", "3", "Ġ", "1", "2"]


def test_other_vocabularies_keep_their_own_splitting(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", pre="gpt-2")
    tokenizer = load_model(str(tmp_path / "tiny.gguf"), device="cpu").tokenizer
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("  3 12")
    assert [piece for piece, _ in pieces] == ["Ġ", "Ġ3", "Ġ12"]
