"""What this machine can serve: the memory that a model needs, and an estimate of its time per decode step."""

from dataclasses import dataclass

import torch

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.loading.catalogue import CATALOGUE
from superdraft.decoding.loading.model_size import BASE_BYTES, ModelSize, cache_bytes, needed_bytes, step_bytes
from superdraft.decoding.memory import free_bytes, shown
from superdraft.decoding.model.llamacpp.runner import MAX_DEFAULT_SLOTS, logits_bytes
from superdraft.decoding.model.native.library import has_kernels
from superdraft.decoding.model.native.rate import weight_rate
from superdraft.decoding.model.threads import is_busy, num_cores
from superdraft.decoding.model.weight_formats import choose_weight_format
from superdraft.server.settings import Settings

CLASSES = {
    "135M": CATALOGUE["smollm2-135m"].size,
    "0.5B": CATALOGUE["qwen2.5-0.5b"].size,
    "1.5B": CATALOGUE["qwen2.5-1.5b"].size,
    "3B": CATALOGUE["qwen2.5-coder-3b"].size,
    "7B": ModelSize(
        6_525_288_448, 544_997_376, 544_997_376, 333_312, is_tied=False, kv_numbers=28_672, vocab_size=152_064
    ),
}
"""A model of each class: SmolLM2-135M, and Qwen2.5 from 0.5B to 7B."""

_FORMATS = ("int4", "bfloat16", "float32")
_GGUF_BYTES = 5 / 8  # of a weight in a file of about 4 bits: those of Q4_K_M have 4.5 to 6


@dataclass(frozen=True, slots=True)
class Machine:
    """What models meet on this machine.

    Attributes:
        free: memory that is free, in bytes; None: unknown.
        dtype: the weight format that torch would use here.
        rate: bytes of int4 weights that the kernels take in per second; None: there is no honest estimate, because
            there are no kernels for this processor, a GPU runs the model, or other programs keep the machine busy.
    """

    free: int | None
    dtype: str
    rate: float | None

    def step_ms(self, size: ModelSize) -> float | None:
        """An estimate of the time of a decode step of one row, in milliseconds; None: there is no honest one.

        The kernels alone take most of the time only of models whose whole forward they run.
        """
        return None if self.rate is None or not size.is_fused else 1000 * step_bytes(size) / self.rate


def look_at_machine(settings: Settings) -> Machine:
    """Look at this machine; measuring the rate takes about a second."""
    dtype, rate = _dtype(settings), None
    if dtype == "int4" and _device(settings).type == "cpu" and has_kernels() and not is_busy():
        rate = weight_rate(settings.num_threads or num_cores())
    return Machine(free_bytes(), dtype, rate)


def _device(settings: Settings) -> torch.device:
    return torch.device("cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")


def _dtype(settings: Settings) -> str:
    """The weight format that torch would use."""
    return choose_weight_format(settings.dtype, _device(settings)).name


def gguf_bytes(file_bytes: int, size: ModelSize, config: EngineConfig) -> int:
    """Most memory that llama.cpp needs for a GGUF file, the program itself included.

    Args:
        file_bytes: size of the file.
        size: of the model.
        config: of the engine.
    """
    cache = cache_bytes(size, "float16", config, max_slots=MAX_DEFAULT_SLOTS)
    return BASE_BYTES + file_bytes + cache + logits_bytes(size.vocab_size)


def class_line(machine: Machine, size: ModelSize, config: EngineConfig) -> str:
    """In which formats a model of this size fits, and the estimate of its time per step."""
    needs = {dtype: needed_bytes(size, dtype, config) for dtype in _FORMATS}
    needs["a GGUF of about 4 bits with llama.cpp"] = gguf_bytes(int(_GGUF_BYTES * size.num_weights), size, config)
    fits = [f"{name} ({shown(num)})" for name, num in needs.items() if machine.free is None or num <= machine.free]
    misses = [
        f"{name} ({shown(num)})" for name, num in needs.items() if machine.free is not None and num > machine.free
    ]
    parts = [f"fits as {', '.join(fits)}"] if fits else []
    parts += [f"does not fit as {', '.join(misses)}"] if misses else []
    step_ms = machine.step_ms(size)
    parts += [] if step_ms is None else [f"estimate with int4: {shown_ms(step_ms)} ms per step"]
    return "; ".join(parts)


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
        dtype = _dtype(settings)
        is_gguf = settings.model.endswith(".gguf")
        needed, how = needed_bytes(size, dtype, config, is_gguf=is_gguf), f"as {dtype}"
    free = "an unknown amount is" if free_now is None else f"{shown(free_now)} are"
    told = f"{free} free, {settings.model} needs up to {shown(needed)} {how} (estimate, with a full KV cache)"
    if free_now is None or needed <= free_now:
        return True, told
    return False, f"{told}; close other programs, lower --kv-memory, or take a smaller model"


def shown_ms(milliseconds: float) -> str:
    """A time with two digits: an estimate has no more."""
    return f"{milliseconds:.2g}" if milliseconds < 100 else f"{milliseconds:.0f}"
