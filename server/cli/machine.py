"""Whether models fit in this machine's memory."""

import torch

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.loading.model_size import BASE_BYTES, ModelSize, cache_bytes, needed_bytes
from superdraft.decoding.memory import free_bytes, shown
from superdraft.decoding.model.llamacpp.runner import MAX_DEFAULT_SLOTS, logits_bytes
from superdraft.decoding.model.weight_formats import choose_weight_format
from superdraft.server.settings import Settings


def torch_dtype(settings: Settings) -> str:
    """The weight format that torch would use."""
    device = torch.device("cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")
    return choose_weight_format(settings.dtype, device).name


def gguf_bytes(file_bytes: int, size: ModelSize, config: EngineConfig) -> int:
    """Most memory that llama.cpp needs for a GGUF file, the program itself included.

    Args:
        file_bytes: size of the file.
        size: of the model.
        config: of the engine.
    """
    cache = cache_bytes(size, "float16", config, max_slots=MAX_DEFAULT_SLOTS)
    return BASE_BYTES + file_bytes + cache + logits_bytes(size.vocab_size)


def model_finding(settings: Settings, size: ModelSize, file_bytes: int | None) -> tuple[bool, str]:
    """Whether the model that the settings name fits, and a sentence about it.

    Args:
        settings: of the server.
        size: of the model.
        file_bytes: size of the GGUF file that llama.cpp runs; None: torch runs the model.
    """
    config, free_now = settings.engine_config(), free_bytes()
    if file_bytes is not None:
        needed, how = gguf_bytes(file_bytes, size, config), "with llama.cpp"
    else:
        dtype = torch_dtype(settings)
        is_gguf = settings.model.endswith(".gguf")
        needed, how = needed_bytes(size, dtype, config, is_gguf=is_gguf), f"as {dtype}"
    free = "an unknown amount is" if free_now is None else f"{shown(free_now)} are"
    told = f"{free} free, {settings.model} needs up to {shown(needed)} {how} (estimate, with a full KV cache)"
    if free_now is None or needed <= free_now:
        return True, told
    return False, f"{told}; close other programs, lower --kv-memory, or take a smaller model"
