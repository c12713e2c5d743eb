"""Tiny models with random weights, saved in the usual format: safetensors, config and tokenizer."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 300
EOS_TOKEN = "<|endoftext|>"
ARCHITECTURES = ("llama", "gpt2", "gpt_neox", "qwen3", "gemma3_text", "opt", "mistral")

_SENTENCES = (
    "Thank you for your email. I will get back to you tomorrow.",
    "The quick brown fox jumps over the lazy dog, and the dog sleeps.",
    "Please find the report attached; the numbers for 2024 are on page 3.",
    "def add(a, b):\n    return a + b\n",
    "We're meeting at noon, aren't we? It's the café on the corner — naïve, isn't it?",
)
# A large initializer range: with the usual 0.02, a random model repeats one token for every prompt.
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "pad_token_id": None,
}
_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE | {"sliding_window": 8},
    "gemma3_text": _LLAMA_LIKE | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "tie_word_embeddings": False},
    "gpt_neox": {k: v for k, v in _LLAMA_LIKE.items() if k not in ("num_key_value_heads", "head_dim")},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 16,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    },
}


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of 300 tokens; id 0 is the end-of-text token. It encodes any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS_TOKEN)


QWEN_FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
STARCODER_FIM = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
CODESTRAL_FIM = ("[PREFIX]", "[SUFFIX]", "[MIDDLE]")


def tiny_fim_tokenizer(names: tuple[str, ...] = QWEN_FIM) -> transformers.PreTrainedTokenizerFast:
    """`tiny_tokenizer` with fill-in-the-middle tokens, the first of which has id 300."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(names))
    return tokenizer


def tiny_model(architecture: str, seed: int = 0, **options: Any) -> transformers.PreTrainedModel:
    """A random two-layer causal LM. The same seed gives the same weights; `options` override its config."""
    settings = _COMMON | {"eos_token_id": 0} | _OPTIONS.get(architecture, {}) | options
    config = transformers.AutoConfig.for_model(architecture, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def tiny_model_folder(folder: Path, architecture: str, seed: int = 0, **options: Any) -> Path:
    """Save `tiny_model` and `tiny_tokenizer` in a new folder named after the architecture, and return the folder."""
    target = folder / architecture
    tiny_model(architecture, seed, **options).save_pretrained(target)
    tiny_tokenizer().save_pretrained(target)
    return target


def save_tiny_coder(folder: Path) -> str:
    """Save a model with fill-in-the-middle tokens; return its folder as a value for the server's `model` setting."""
    tokenizer = tiny_fim_tokenizer()
    tiny_model("llama", vocab_size=max(VOCAB_SIZE, len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
