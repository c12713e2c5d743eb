"""The place that a model's name means: a known model's file, a local folder, a `.gguf` file or the hub."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from superdraft.decoding.errors import BrokenModelError, ModelLoadError, UnknownModelError
from superdraft.decoding.loading.catalogue import CATALOGUE, KNOWN_MODELS, ListedModel
from superdraft.decoding.loading.hub import cached_bytes, cached_folder
from superdraft.decoding.loading.store import ModelStore

_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_MESSAGE_LENGTH = 300


@dataclass(frozen=True)
class Source:
    """The place that a model is read from.

    Attributes:
        name: the name in the catalogue, the folder's or file's name, or the hub id.
        location: the argument of `from_pretrained`.
        path: the folder or `.gguf` file; None for a hub id.
        gguf: the `.gguf` file; None for all others.
        listed: its line in the catalogue; None: it is not in there.
        home: the home folder; None: see `superdraft_home`.
    """

    name: str
    location: str
    path: Path | None = None
    gguf: Path | None = None
    listed: ListedModel | None = None
    home: Path | None = None

    @property
    def shown(self) -> str:
        """The name that errors use."""
        return self.name if self.path is None or self.is_known else str(self.path)

    @property
    def is_known(self) -> bool:
        """Whether it is one of `KNOWN_MODELS`, which are pinned."""
        return self.listed is not None and self.gguf is not None

    @property
    def hint(self) -> str:
        """A remedy, which ends the messages of errors."""
        if self.is_known:
            return f" `superdraft models pull {self.name}` checks and repairs it."
        if self.listed is not None and self.listed.is_gated:
            return " Its licence must be accepted on the hub, and HF_TOKEN set."
        return ""

    @property
    def cached(self) -> Path | None:
        """The folder or file where it is on this machine; None: it must be fetched first. Asks no network."""
        if self.gguf is not None and self.is_known:
            return self.gguf.parent if ModelStore(self.home).is_cached(self.name) else None
        return self.path or cached_folder(self.location)

    @property
    def cached_bytes(self) -> int | None:
        """Size of a model of the catalogue on this machine; None: it must be fetched first."""
        folder = self.cached
        if folder is None:
            return None
        if not self.is_known:
            return cached_bytes(self.location)
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def resolve(spec: str, home: Path | None = None) -> Source:
    """What a model's name means. Fetches nothing.

    Args:
        spec: a name in the catalogue, a local folder, a `.gguf` file, or a hub id.
        home: the home folder; None: see `superdraft_home`.

    Raises:
        UnknownModelError: the name is empty, or is that of a file or folder without a model.
        BrokenModelError: the folder has no config.
    """
    listed = CATALOGUE.get(spec)
    if spec in KNOWN_MODELS:
        file = ModelStore(home).file(spec)
        return Source(spec, str(file.parent), file, file, listed, home)
    if listed is not None:
        return Source(spec, listed.hub_id, listed=listed)
    if not spec.strip():
        raise UnknownModelError(f"the model's name must not be empty, got {spec!r}.")
    path = Path(spec).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BrokenModelError(f"the folder {path} contains no model: config.json is missing.")
        return Source(path.resolve().name, str(path), path)
    if path.suffix == ".gguf" and path.is_file():
        return Source(path.stem, str(path.parent), path, path, home=home)
    looks_local = spec.startswith(("/", "./", "../", "~")) or path.suffix == ".gguf" or spec.count("/") > 1
    if looks_local or path.exists():
        raise UnknownModelError(f"{spec!r} is neither a folder with a model nor a .gguf file.")
    return Source(spec, spec)


def locate(spec: str, home: Path | None = None, *, deep: bool = False) -> Source:
    """What a model's name means. A known model is fetched first if it is not on this machine.

    Args:
        spec: see `resolve`.
        home: see `resolve`.
        deep: verify a known model's SHA-256 in any case.

    Raises:
        ModelLoadError: as `resolve`; or a known model could not be fetched.
    """
    source = resolve(spec, home)
    if source.is_known:
        ModelStore(home).ensure(spec, deep=deep)
    return source


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
