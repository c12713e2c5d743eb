"""llama.cpp itself, through llama-cpp-python's low-level functions: a model file, and which ones are refused."""

import ctypes
import functools
import weakref
from collections import deque
from pathlib import Path
from typing import Any

from superdraft.decoding.errors import BrokenModelError, ModelLoadError, UnsupportedModelError

_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_SEVERAL_POSITIONS = ("MROPE", "IMROPE", "VISION")  # kinds of rotary positions with several numbers per token
_errors: deque[str] = deque(maxlen=4)
_callbacks: list[Any] = []  # llama.cpp calls them for as long as the process lives


@functools.cache
def library() -> Any:
    """The module of llama.cpp's functions, ready for use; what llama.cpp says goes nowhere but into error messages.

    Raises:
        ModelLoadError: llama-cpp-python is not installed, or its library cannot be loaded.
    """
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelLoadError(
            f"llama.cpp needs llama-cpp-python ({type(error).__name__}: {error}). Install it: "
            'CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python'
        ) from error

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep_errors(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        if level == _ERROR_LEVEL:
            _errors.append(text.decode(errors="replace").strip())

    _callbacks.append(keep_errors)
    llama_cpp.llama_log_set(keep_errors, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


def last_errors() -> str:
    """What llama.cpp has said about its latest failure, in one line; then forgotten."""
    said = "; ".join(_errors)
    _errors.clear()
    return said or "no reason given"


class LlamaModel:
    """A `.gguf` file that llama.cpp has mapped into memory.

    Args:
        path: the file.
        gpu_layers: layers that a GPU runs; None: all of them, if llama.cpp was built for a GPU.

    Attributes:
        pointer: llama.cpp's own object.
        architecture: its name in the file.
        width: D, numbers of an embedding.
        vocab_size: V, rows of the model's output.
        context_length: positions that the model was trained for.

    Raises:
        BrokenModelError: the file cannot be read.
        UnsupportedModelError: Superposed Decoding cannot run on the model here.
        ModelLoadError: llama.cpp cannot be used, or not with a GPU.
    """

    def __init__(self, path: Path, gpu_layers: int | None = None) -> None:
        lib = library()
        if gpu_layers and not lib.llama_supports_gpu_offload():
            raise ModelLoadError(
                f"gpu_layers is {gpu_layers}, but llama-cpp-python was built without a GPU. Build it for yours, for "
                "example with CMAKE_ARGS=-DGGML_CUDA=on, or leave gpu_layers out."
            )
        options = lib.llama_model_default_params()
        if gpu_layers is not None:
            options.n_gpu_layers = gpu_layers
        last_errors()
        self.pointer = lib.llama_model_load_from_file(str(path).encode(), options)
        if not self.pointer:
            raise BrokenModelError(f"llama.cpp cannot load {path}: {last_errors()}")
        weakref.finalize(self, lib.llama_model_free, self.pointer)
        self.architecture = self._metadata("general.architecture")
        self._refuse(path.name)
        self.width = int(lib.llama_model_n_embd(self.pointer))
        self.vocab_size = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.pointer)))
        self.context_length = int(lib.llama_model_n_ctx_train(self.pointer))

    def _metadata(self, key: str) -> str:
        """A value of the file's metadata as text; empty if the file lacks it."""
        text = ctypes.create_string_buffer(128)
        length = library().llama_model_meta_val_str(self.pointer, key.encode(), text, len(text))
        return text.value.decode(errors="replace") if length >= 0 else ""

    def _refuse(self, name: str) -> None:
        lib, model = library(), self.pointer
        several = {getattr(lib, f"LLAMA_ROPE_TYPE_{kind}") for kind in _SEVERAL_POSITIONS}
        reasons = {
            "it has an encoder; a decoder-only model is needed": lib.llama_model_has_encoder(model),
            "it is a recurrent model; one with attention as its only memory is needed": (
                lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)
            ),
            "it is a diffusion model": lib.llama_model_is_diffusion(model),
            "its layers see a sliding window, in which llama.cpp overwrites what drafts share": (
                lib.llama_model_n_swa(model) > 0
            ),
            "it takes more than a token's embedding as input": (
                lib.llama_model_n_embd_inp(model) != lib.llama_model_n_embd(model)
            ),
            "its positions have several numbers each": lib.llama_model_rope_type(model) in several,
            "it is one of several parts; merge them with llama-gguf-split --merge": (
                int(self._metadata("split.count") or 0) > 1
            ),
        }
        for reason, applies in reasons.items():
            if applies:
                raise UnsupportedModelError(
                    f"llama.cpp cannot run {name} ({self.architecture}): {reason}. --runner torch may."
                )
