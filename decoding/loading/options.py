"""Options of a model: which one, and where and how it runs."""

from dataclasses import dataclass
from pathlib import Path

from superdraft.decoding.loading.catalogue import DEFAULT_MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """A model, and where and how it runs.

    Attributes:
        model: a name in the catalogue (`superdraft models list`), a folder with safetensors weights, a `.gguf` file, or
            the id of a model on the hub. A model that is not on this machine is downloaded.
        home: folder of the known models and of what is made once; None: see `superdraft_home`.
        runner: "torch"; "llamacpp", for a `.gguf` file or a known model's own; "auto": torch where there are kernels
            for the processor and memory suffices, else llama.cpp for a `.gguf` file, if it is installed.
        device: for torch: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:N".
        dtype: for torch: name of a weight format, or "auto"; see `choose_weight_format`.
        num_threads: on the CPU; None: torch measures which number is fastest, llama.cpp takes all cores.
        gpu_layers: for llama.cpp: layers that a GPU runs; None: all of them, if it was built for a GPU.
        trust_remote_code: run Python code that comes with the model.
        checks_memory: refuse a model that does not fit in the free memory, before its weights are read.
    """

    model: str = DEFAULT_MODEL
    home: Path | None = None
    runner: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    num_threads: int | None = None
    gpu_layers: int | None = None
    trust_remote_code: bool = False
    checks_memory: bool = True
