"""The folder in which a model is built: one a model, locked, kept when the build is killed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from superdraft.ngram_models.errors import NgramBuildError
from superdraft.ngram_models.store.manifest import MANIFEST_FILE

_SUFFIX: Final = ".build"


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """Where the parts of a build lie.

    Attributes:
        path: the folder; it lies beside the model's, on the same disk, and its name begins with a dot, so that nobody
            looks for models in it.
        model: the model's folder.
    """

    path: Path
    model: Path

    @property
    def shards(self) -> Path:
        """The folder of the tokenised corpus."""
        return self.path / "shards"

    @property
    def temporary(self) -> Path:
        """A folder for KenLM's own files; empty when a run starts."""
        return self.path / "temporary"

    @property
    def new(self) -> Path:
        """The folder that becomes the model; empty when a run starts."""
        return self.path / "new"

    @property
    def old(self) -> Path:
        """Where a model that is replaced waits until the new one is in its place."""
        return self.path / "old"

    def publish(self) -> None:
        """Put the new model in its place; one that was there is in `old` from then on."""
        if self.model.exists():
            self.model.rename(self.old)
        self.new.rename(self.model)

    def start(self) -> None:
        """Take back what a killed run left half done."""
        if self.old.is_dir() and not self.model.exists():
            # Killed just between the two renames of `publish`.
            self.old.rename(self.model)
        for folder in (self.old, self.new, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.shards, self.new, self.temporary):
            folder.mkdir(exist_ok=True)


@contextmanager
def work_folder(model: Path) -> Iterator[WorkFolder]:
    """The work folder of a model, for this process alone.

    It is removed when the build succeeds. When it fails, what a next run can use stays.

    Raises:
        NgramBuildError: another process builds this model, or `model` is something else than a model.
    """
    _refuse_to_replace_other_things(model)
    folder = WorkFolder(model.parent / f".{model.name}{_SUFFIX}", model)
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.path / "lock", blocking=False)
    try:
        with lock:
            folder.start()
            try:
                yield folder
            except BaseException:
                _keep_finished_parts(folder)
                raise
            shutil.rmtree(folder.path, ignore_errors=True)
    except Timeout:
        raise NgramBuildError(
            f"Another process is building {model.name!r} in {model.parent}. Wait for it, or choose another name."
        ) from None


def unfinished_builds(parent: Path) -> list[tuple[str, Path]]:
    """Name and work folder of every model below `parent` whose build runs just now, failed or was killed."""
    folders = sorted(parent.glob(f".*{_SUFFIX}")) if parent.is_dir() else []
    return [(folder.name.removeprefix(".").removesuffix(_SUFFIX), folder) for folder in folders]


def _keep_finished_parts(folder: WorkFolder) -> None:
    for part in (folder.new, folder.temporary):
        shutil.rmtree(part, ignore_errors=True)
    for partial in folder.path.rglob("*.partial"):
        partial.unlink()
    finished = [path for path in folder.path.rglob("*") if path.is_file() and path.name != "lock"]
    if not finished:
        shutil.rmtree(folder.path, ignore_errors=True)


def _refuse_to_replace_other_things(folder: Path) -> None:
    is_model = (folder / MANIFEST_FILE).is_file()
    if folder.exists() and not is_model and not (folder.is_dir() and not any(folder.iterdir())):
        raise NgramBuildError(f"{folder} exists and is no n-gram model. Choose another name or remove it.")
