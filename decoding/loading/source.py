"""Where a language model is read from: a known model's folder, a local folder, a `.gguf` file or the hub."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from superdraft.decoding.errors import BrokenModelError, ModelLoadError, UnknownModelError
from superdraft.decoding.loading.catalogue import CATALOGUE
from superdraft.decoding.loading.converted import ConvertedFiles
from superdraft.decoding.loading.store import ModelStore

_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_MESSAGE_LENGTH = 300


@dataclass(frozen=True)
class Source:
    """The place that a model is read from.

    Attributes:
        name: the known name, the folder's or file's name, or the hub id.
        location: the argument of `from_pretrained`.
        path: the folder or `.gguf` file; None for a hub id.
        gguf: the `.gguf` file; None for all others.
        hint: a remedy, which ends the messages of errors.
        home: folder of the known models, with the cache of expanded GGUF files; None: the default folder.
        entry: the folder in that cache that is read in place of the file; None: there is none yet.
    """

    name: str
    location: str
    path: Path | None = None
    gguf: Path | None = None
    hint: str = ""
    home: Path | None = None
    entry: Path | None = None

    @property
    def shown(self) -> str:
        """The name that errors use."""
        return str(self.path) if self.path is not None else self.name

    @property
    def gguf_options(self) -> dict[str, str]:
        """Further arguments of `from_pretrained`."""
        return {} if self.gguf is None or self.entry is not None else {"gguf_file": self.gguf.name}


def locate(spec: str, home: Path | None) -> Source:
    """Find a model. A known model is fetched first if it is not cached.

    Args:
        spec: a name in the catalogue, a local folder, a `.gguf` file, or a hub id.
        home: folder of the known models; None: the default folder.

    Raises:
        UnknownModelError: the name is empty, or is that of a file or folder without a model.
        BrokenModelError: the folder has no config.
        ModelLoadError: a known model could not be fetched.
    """
    store = ModelStore(home)
    if store.knows(spec):
        folder = store.ensure(spec)
        return Source(spec, str(folder), folder, hint=f" `superdraft models pull {spec}` checks and repairs it.")
    if spec in CATALOGUE:
        listed = CATALOGUE[spec]
        hint = " Its licence must be accepted on the hub, and HF_TOKEN set." if listed.is_gated else ""
        return Source(spec, listed.hub_id, hint=hint)
    if not spec.strip():
        raise UnknownModelError(f"the model's name must not be empty, got {spec!r}.")
    path = Path(spec).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BrokenModelError(f"the folder {path} contains no model: config.json is missing.")
        return Source(path.resolve().name, str(path), path)
    if path.suffix == ".gguf" and path.is_file():
        return Source(path.stem, str(path.parent), path, gguf=path, home=home)
    looks_local = spec.startswith(("/", "./", "../", "~")) or path.suffix == ".gguf" or spec.count("/") > 1
    if looks_local or path.exists():
        raise UnknownModelError(f"{spec!r} is neither a folder with a model nor a .gguf file.")
    return Source(spec, spec)


def expanded(source: Source, dtype: torch.dtype) -> Source:
    """The source with its cache entry, if it is a GGUF file that was expanded before."""
    entry = None if source.gguf is None else ConvertedFiles(source.home).find(source.gguf, dtype)
    return source if entry is None else replace(source, location=str(entry), entry=entry)


def check_weight_files(folder: Path) -> None:
    """Check that a folder has safetensors weights.

    Raises:
        BrokenModelError: it has none.
    """
    files = [file for file in folder.iterdir() if file.is_file()]
    if any(file.suffix == ".safetensors" for file in files):
        return
    pickles = sorted(file.name for file in files if file.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise BrokenModelError(
            f"{folder} has only pickled weights ({pickles[0]}). They are refused because reading them can run code. "
            "Save the model as safetensors."
        )
    ggufs = sorted(file for file in files if file.suffix == ".gguf")
    if ggufs:
        raise BrokenModelError(f"{folder} has no safetensors weights. To use its GGUF file, pass its path: {ggufs[0]}")
    raise BrokenModelError(f"{folder} has no safetensors weights.")


@contextlib.contextmanager
def explained(what: str, error_class: type[ModelLoadError], hint: str = "") -> Iterator[None]:
    """Turn any exception that transformers, torch or the system raises about a user's files into a one-line error."""
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        if len(reason) > _MESSAGE_LENGTH:
            reason = f"{reason[:_MESSAGE_LENGTH]}..."
        raise error_class(f"{what}: {type(error).__name__}: {reason}{hint}") from error
