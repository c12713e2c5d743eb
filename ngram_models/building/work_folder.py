"""Work folder of a build: one per model, locked, and kept if the build is killed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from superdraft.ngram_models.durable import LOCK_FILE, force, locked
from superdraft.ngram_models.errors import NgramBuildError
from superdraft.ngram_models.store.manifest import MANIFEST_FILE

_SUFFIX: Final = ".build"


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """Paths of a build.

    Attributes:
        path: the work folder. It is next to the model's folder, on the same disk. Its name begins with a dot, so that
            it is not listed as a model.
        model: the model's folder.
    """

    path: Path
    model: Path

    @property
    def shards(self) -> Path:
        """Folder of the tokenised corpus."""
        return self.path / "shards"

    @property
    def temporary(self) -> Path:
        """Folder for KenLM's temporary files and logs; empty when a run starts."""
        return self.path / "temporary"

    @property
    def new(self) -> Path:
        """Folder that becomes the model; empty when a run starts."""
        return self.path / "new"

    @property
    def old(self) -> Path:
        """Folder of the replaced model, until the new one is in place."""
        return self.path / "old"

    def publish(self) -> None:
        """Move the new model into place, once it is on the disk. A model that was there before is moved to `old`."""
        for path in (*self.new.iterdir(), self.new):
            force(path)
        if self.model.exists():
            self.model.rename(self.old)
        self.new.rename(self.model)
        force(self.model.parent)

    def start(self) -> None:
        """Clean up after a run that was killed, and create the sub-folders."""
        if self.old.is_dir() and not self.model.exists():
            # The run was killed between the two renames of `publish`.
            self.old.rename(self.model)
        for folder in (self.old, self.new, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.shards, self.new, self.temporary):
            folder.mkdir(exist_ok=True)


@contextmanager
def work_folder(model: Path) -> Iterator[WorkFolder]:
    """Open the work folder of a model, and lock it for this process.

    It is removed if the build succeeds. If the build fails, the files that the next run can reuse are kept.

    Raises:
        NgramBuildError: another process is building this model, or `model` exists and is not a model.
    """
    refuse_to_replace_other_things(model)
    folder = WorkFolder(model.parent / f".{model.name}{_SUFFIX}", model)
    folder.path.mkdir(parents=True, exist_ok=True)
    message = f"Another process is building {model.name!r} in {model.parent}. Wait for it, or choose another name."
    with locked(folder.path, NgramBuildError(message)):
        folder.start()
        try:
            yield folder
        except BaseException:
            _keep_finished_parts(folder)
            raise
        shutil.rmtree(folder.path, ignore_errors=True)


def unfinished_builds(parent: Path) -> list[tuple[str, Path]]:
    """Names and work folders of all models in `parent` whose build is running, has failed or was killed."""
    folders = sorted(parent.glob(f".*{_SUFFIX}")) if parent.is_dir() else []
    return [(folder.name.removeprefix(".").removesuffix(_SUFFIX), folder) for folder in folders]


def _keep_finished_parts(folder: WorkFolder) -> None:
    for part in (folder.new, folder.temporary):
        shutil.rmtree(part, ignore_errors=True)
    for partial in folder.path.rglob("*.partial"):
        partial.unlink()
    finished = [path for path in folder.path.rglob("*") if path.is_file() and path.name != LOCK_FILE]
    if not finished:
        shutil.rmtree(folder.path, ignore_errors=True)


def refuse_to_replace_other_things(folder: Path) -> None:
    """Check that a new model may be put at `folder`.

    Raises:
        NgramBuildError: there is something else.
    """
    is_model = (folder / MANIFEST_FILE).is_file()
    if folder.exists() and not is_model and not (folder.is_dir() and not any(folder.iterdir())):
        raise NgramBuildError(f"{folder} exists and is not an n-gram model. Choose another name or remove it.")
