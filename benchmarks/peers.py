"""Other ways to get several drafts: transformers' `generate`, and llama.cpp through llama-cpp-python.

Both run in the benchmark's own process, without HTTP, and are given token ids. Neither stops before it has generated
all its tokens.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import torch

from superdraft.decoding.loading.loader import load_model
from superdraft.decoding.loading.store import KNOWN_MODELS, ModelStore
from superdraft.server.errors import CommandError

INSTALL_LLAMA_CPP = 'CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_AMX=OFF" pip install llama-cpp-python'
"""Builds llama.cpp for this processor, without its AMX kernels, which crash on some processors that have AMX."""

_CONTEXT = 512
_TOP_P = 0.9

Contender = Callable[[str, list[int]], int]
"""Makes drafts for a prompt, given as text and as token ids; returns their number of tokens."""


def transformers_peer(model: str, dtype: str, num_threads: int, num_drafts: int, num_tokens: int) -> Contender:
    """Nucleus sampling of all drafts in one batch, with transformers' own KV cache. Sets torch's number of threads."""
    torch.set_num_threads(num_threads)
    loaded = load_model(model, device="cpu", dtype=dtype)

    @torch.inference_mode()
    def draft(_: str, token_ids: list[int]) -> int:
        output = loaded.model.generate(
            torch.tensor([token_ids]),
            attention_mask=torch.ones(1, len(token_ids), dtype=torch.long),
            do_sample=True,
            top_p=_TOP_P,
            top_k=0,
            num_return_sequences=num_drafts,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            pad_token_id=loaded.tokenizer.eos_token_id,
        )
        new = output[:, len(token_ids) :]
        loaded.tokenizer.batch_decode(new)
        return int(new.numel())

    return draft


def llama_cpp_peer(model: str, num_threads: int, num_drafts: int, num_tokens: int) -> Contender:
    """Drafts one after another with llama.cpp's default sampling; all except the first find their prompt in its cache.

    Raises:
        CommandError: llama-cpp-python is not installed, or the model has no GGUF file.
    """
    try:
        from llama_cpp import Llama
    except ImportError:
        raise CommandError(f"llama-cpp-python is not installed: {INSTALL_LLAMA_CPP}") from None
    llama = Llama(
        str(gguf_file(model)), n_ctx=_CONTEXT, n_threads=num_threads, n_threads_batch=num_threads, verbose=False
    )

    def draft(_text: str, token_ids: list[int]) -> int:
        num_made = 0
        for _ in range(num_drafts):
            new = list(itertools.islice(llama.generate(token_ids), num_tokens))
            llama.detokenize(new)
            num_made += len(new)
        return num_made

    return draft


def gguf_file(model: str) -> Path:
    """The GGUF file of a known model, or `model` itself if it is a GGUF file.

    Raises:
        CommandError: there is no such file.
    """
    if model in KNOWN_MODELS:
        return ModelStore().ensure(model) / KNOWN_MODELS[model].gguf_name
    if Path(model).suffix == ".gguf" and Path(model).is_file():
        return Path(model)
    raise CommandError(
        f"llama.cpp reads GGUF files, and {model} is not one. Name a .gguf file, or leave llama.cpp out."
    )
