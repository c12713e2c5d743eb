"""Finding and loading n-gram models by name or path."""

import mmap
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import BinaryIO

import kenlm

from superdraft.ngram_models.errors import BrokenNgramModelError, NgramModelError, NgramModelNotFoundError
from superdraft.ngram_models.home import user_models_folder
from superdraft.ngram_models.scoring.binary_check import check_binary
from superdraft.ngram_models.scoring.scorer import KenLMScorer
from superdraft.ngram_models.store.manifest import BINARY_FILE, MANIFEST_FILE, Manifest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class NgramModel:
    """A loaded model."""

    scorer: KenLMScorer
    manifest: Manifest
    folder: Path

    @property
    def name(self) -> str:
        """Name of the model's folder, which may differ from the name it was built under."""
        return self.folder.absolute().name


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model in a listing. Its binary has not been checked.

    `manifest` is None if it cannot be read; `problem` then says why.
    """

    name: str
    folder: Path
    manifest: Manifest | None
    problem: str | None

    @classmethod
    def of(cls, name: str, folder: Path) -> "ListedModel":
        """Read the manifest of a folder."""
        try:
            return cls(name, folder, Manifest.read(folder), None)
        except NgramModelError as error:
            return cls(name, folder, None, str(error))


def is_model_name(text: str) -> bool:
    """Whether `text` could be the name of a model, as opposed to a path."""
    return _NAME.fullmatch(text) is not None


def _folders_of_models(home: Path | None) -> tuple[Path, ...]:
    """Folders that are searched for names; the user's own models take precedence over shipped ones."""
    return user_models_folder(home), Path(str(resources.files("superdraft.ngram_models"))) / "data"


def list_ngram_models(home: Path | None = None) -> list[ListedModel]:
    """List the shipped models and the user's own, sorted by name.

    Args:
        home: Superdraft's home folder; None: `$SUPERDRAFT_HOME` or the user's cache folder.
    """
    names = {path.name for parent in _folders_of_models(home) if parent.is_dir() for path in parent.iterdir()}
    return [ListedModel.of(name, folder) for name in sorted(names) if (folder := named_model_folder(name, home))]


def named_model_folder(name: str, home: Path | None = None) -> Path | None:
    """Folder of the model with this name, or None if there is none. `name` is never interpreted as a path.

    Args:
        name: name of a shipped model or of one of the user's own.
        home: as in `list_ngram_models`.
    """
    if is_model_name(name):
        for parent in _folders_of_models(home):
            if (parent / name / MANIFEST_FILE).is_file():
                return parent / name
    return None


def find_ngram_model(name_or_path: str | Path, home: Path | None = None) -> Path:
    """Find the folder of a model.

    Args:
        name_or_path: the name of a shipped model or of one of the user's own, or else the path of a model's folder.
        home: as in `list_ngram_models`.

    Raises:
        NgramModelNotFoundError: no model has that name, and there is no folder at that path.
    """
    folder = named_model_folder(str(name_or_path), home) or Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NgramModelNotFoundError(
            f"{folder} is a file; an n-gram model is a folder with a {MANIFEST_FILE}, as superdraft ngram build makes."
        )
    known = ", ".join(model.name for model in list_ngram_models(home)) or "none"
    raise NgramModelNotFoundError(
        f"There is no n-gram model or folder {str(name_or_path)!r}. Known models: {known}. To build a model, use "
        "superdraft ngram build."
    )


def load_ngram_model(name_or_path: str | Path, *, fingerprint: str, home: Path | None = None) -> NgramModel:
    """Load an n-gram model for a language model.

    Args:
        name_or_path: as in `find_ngram_model`.
        fingerprint: `tokenizer_fingerprint` of the language model's tokenizer.
        home: as in `list_ngram_models`.

    Raises:
        NgramModelNotFoundError: there is no such model.
        BrokenNgramModelError: the model is damaged.
        TokenizerMismatchError: the model was built for another tokenizer.
    """
    folder = find_ngram_model(name_or_path, home)
    manifest = Manifest.read(folder)
    manifest.verify_tokenizer(fingerprint)
    return NgramModel(open_scorer(folder, manifest), manifest, folder)


def open_scorer(folder: Path, manifest: Manifest) -> KenLMScorer:
    """Load the scorer of a model's folder. The tokenizer is not checked.

    KenLM gets a copy in memory: if it mapped the file itself, whoever truncates the file would end this process.

    Raises:
        BrokenNgramModelError: the binary is damaged or does not match the manifest.
    """
    path = folder / BINARY_FILE
    with _private_file() as (copy, copy_path):
        manifest.verify_binary(folder, copy)
        copy.flush()
        try:
            check_binary(memoryview(mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ)))
        except ValueError as error:
            raise BrokenNgramModelError(f"{path} is damaged: {error}. Build the model again.") from None
        # By default KenLM reads the whole file while it holds the interpreter lock. Lazy mapping opens it at once.
        config = kenlm.Config()
        config.load_method = kenlm.LoadMethod.LAZY
        config.show_progress = False
        try:
            model = kenlm.Model(str(copy_path), config)
        except (OSError, RuntimeError) as error:
            raise BrokenNgramModelError(f"KenLM cannot load {path}: {error}. Build the model again.") from None
    if model.order != manifest.order:
        raise BrokenNgramModelError(
            f"{path} has order {model.order}, but its manifest says {manifest.order}. Build the model again."
        )
    tokenizer = manifest.tokenizer
    return KenLMScorer(model, vocabulary_size=tokenizer.vocabulary_size, end_of_text_ids=tokenizer.end_of_text_ids)


@contextmanager
def _private_file() -> Iterator[tuple[BinaryIO, Path]]:
    """An empty file of this process alone, and the path that opens it as long as the context lasts.

    Where the system has no files in memory, it is a temporary file. Mappings made from it stay.
    """
    if sys.platform == "linux":
        with os.fdopen(os.memfd_create("superdraft-ngram"), "w+b") as file:
            yield file, Path(f"/proc/self/fd/{file.fileno()}")
    else:
        with tempfile.NamedTemporaryFile() as temporary:
            yield temporary.file, Path(temporary.name)
