"""Finding and loading n-gram models by name or path."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import kenlm

from superdraft.ngram_models.errors import BrokenNgramModelError, NgramModelError, NgramModelNotFoundError
from superdraft.ngram_models.home import user_models_folder
from superdraft.ngram_models.scoring.scorer import KenLMScorer, UnknownPolicy
from superdraft.ngram_models.store.manifest import MANIFEST_FILE, Manifest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class NgramModel:
    """A loaded model: its scorer and what is known about it."""

    scorer: KenLMScorer
    manifest: Manifest
    folder: Path

    @property
    def name(self) -> str:
        """What the model is asked for by: its folder's name, which may have changed since it was built."""
        return self.folder.absolute().name


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model that is found; its binary is not looked at.

    `manifest` is None if `problem` tells why it cannot be read.
    """

    name: str
    folder: Path
    manifest: Manifest | None
    problem: str | None


def is_model_name(text: str) -> bool:
    """Whether `text` can name a model, rather than being a path."""
    return _NAME.fullmatch(text) is not None


def _folders_of_models(home: Path | None) -> tuple[Path, ...]:
    """Where names are looked for: the user's own models hide shipped ones of the same name."""
    return user_models_folder(home), Path(str(resources.files("superdraft.ngram_models"))) / "data"


def list_ngram_models(home: Path | None = None) -> list[ListedModel]:
    """All models that have a name, sorted by it.

    Args:
        home: Superdraft's home folder; None: `$SUPERDRAFT_HOME` or the user's cache folder.
    """
    found: dict[str, ListedModel] = {}
    for parent in _folders_of_models(home):
        for folder in _named_folders(parent):
            found.setdefault(folder.name, _describe(folder))
    return [found[name] for name in sorted(found)]


def _named_folders(parent: Path) -> Iterator[Path]:
    if parent.is_dir():
        yield from (path for path in parent.iterdir() if is_model_name(path.name) and (path / MANIFEST_FILE).is_file())


def _describe(folder: Path) -> ListedModel:
    try:
        return ListedModel(folder.name, folder, Manifest.read(folder), None)
    except NgramModelError as error:
        return ListedModel(folder.name, folder, None, str(error))


def named_model_folder(name: str, home: Path | None = None) -> Path | None:
    """The folder of the model that has this name; None: there is none. `name` is never taken for a path.

    Args:
        name: of one of the user's own models or of a shipped one.
        home: as in `list_ngram_models`.
    """
    if is_model_name(name):
        for parent in _folders_of_models(home):
            if (parent / name / MANIFEST_FILE).is_file():
                return parent / name
    return None


def find_ngram_model(name_or_path: str | Path, home: Path | None = None) -> Path:
    """The folder of a model.

    Args:
        name_or_path: the name of a shipped model or of one of the user's own, else the path of a model's folder.
        home: as in `list_ngram_models`.

    Raises:
        NgramModelNotFoundError: there is none.
    """
    if is_model_name(str(name_or_path)):
        for parent in _folders_of_models(home):
            if (parent / name_or_path).is_dir():
                return parent / name_or_path
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NgramModelNotFoundError(
            f"{folder} is a file; an n-gram model is a folder with a {MANIFEST_FILE}, made by superdraft ngram build."
        )
    known = ", ".join(model.name for model in list_ngram_models(home)) or "none"
    raise NgramModelNotFoundError(
        f"There is no n-gram model {str(name_or_path)!r}, neither by that name nor as a folder. Known: {known}. "
        "superdraft ngram build makes one."
    )


def load_ngram_model(
    name_or_path: str | Path, *, fingerprint: str, unknown: UnknownPolicy = "unk", home: Path | None = None
) -> NgramModel:
    """Load an n-gram model for a language model.

    Args:
        name_or_path: as in `find_ngram_model`.
        fingerprint: `tokenizer_fingerprint` of the language model's tokenizer.
        unknown: what a token scores that the corpus lacks, see `KenLMScorer`.
        home: as in `list_ngram_models`.

    Raises:
        NgramModelNotFoundError: there is no such model.
        BrokenNgramModelError: it is damaged.
        TokenizerMismatchError: it was built for another tokenizer.
    """
    folder = find_ngram_model(name_or_path, home)
    manifest = Manifest.read(folder)
    manifest.verify_tokenizer(fingerprint)
    return NgramModel(open_scorer(folder, manifest, unknown=unknown), manifest, folder)


def open_scorer(folder: Path, manifest: Manifest, *, unknown: UnknownPolicy = "unk") -> KenLMScorer:
    """The scorer of a model's folder, whatever tokenizer it is for.

    Raises:
        BrokenNgramModelError: the binary is damaged or is not what the manifest says.
    """
    path = manifest.verify_binary(folder)
    # KenLM would read the whole file while it holds the interpreter's lock; mapped lazily, opening costs nothing.
    config = kenlm.Config()
    config.load_method = kenlm.LoadMethod.LAZY
    config.show_progress = False
    try:
        model = kenlm.Model(str(path), config)
    except (OSError, RuntimeError) as error:
        raise BrokenNgramModelError(f"KenLM cannot load {path}: {error}. Build the model again.") from None
    if model.order != manifest.order:
        raise BrokenNgramModelError(
            f"{path} is of order {model.order}, its manifest says {manifest.order}. Build the model again."
        )
    return KenLMScorer(
        model,
        vocabulary_size=manifest.tokenizer.vocabulary_size,
        end_of_text_ids=manifest.tokenizer.end_of_text_ids,
        unknown=unknown,
    )
