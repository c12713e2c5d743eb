"""The n-gram models on disk: found by name, loaded on first use, the most recently used ones kept."""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from weakref import WeakValueDictionary

import structlog

from superdraft.ngram_models.errors import BrokenNgramModelError, NgramModelError, NgramModelNotFoundError
from superdraft.ngram_models.scoring.scorer import KenLMScorer
from superdraft.ngram_models.store.manifest import BINARY_FILE, MANIFEST_FILE, Manifest, TokenizerIdentity
from superdraft.ngram_models.store.registry import (
    ListedModel,
    NgramModel,
    list_ngram_models,
    named_model_folder,
    open_scorer,
)

DEFAULT_MAX_MODELS: Final = 8
CHECK_INTERVAL_S: Final = 1.0
"""Seconds for which a loaded model's files are not looked at again. That took a tenth of the event loop's time."""

_MAX_ATTEMPTS = 3
_REPLACING_S = 0.02

T = TypeVar("T")
_FileIdentity = tuple[int, int, int, int]
# Identities of the manifest and the binary. They change when the model is replaced.
_Version = tuple[_FileIdentity, _FileIdentity | None]

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Loaded:
    """The result of loading one version of a model.

    Attributes:
        version: None: the version is not known.
        outcome: the model, or why there is none.
        checked_s: when the files last had this version.
    """

    version: _Version | None
    outcome: NgramModel | NgramModelError
    checked_s: float = -math.inf


class ModelFolders:
    """The models on disk, and the loaded ones among them.

    A model that was added is found at the next request. The files of a loaded one are checked once per second at most,
    so a model that was replaced is seen a moment later, without a restart. Requests that use the old one keep it: it is
    in memory, as long as its scorer lives. Models are loaded one at a time in a thread of their own. The `max_models`
    most recently used ones stay loaded.

    For one event loop.

    Args:
        fingerprint: of the language model's tokenizer.
        home: Superdraft's home folder, see `list_ngram_models`.
        max_models: models that stay loaded, at least 1.
        paths: folders of models that the operator named by path, by the name that requests use.
        first: a model that is loaded already and is never dropped.
        check_interval_s: seconds for which a loaded model's files are not checked again.
        clock: monotonic seconds.

    Attributes:
        fingerprint: as given.
        first: as given.
    """

    def __init__(
        self,
        fingerprint: str,
        *,
        home: Path | None = None,
        max_models: int = DEFAULT_MAX_MODELS,
        paths: Mapping[str, Path] | None = None,
        first: NgramModel | None = None,
        check_interval_s: float = CHECK_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fingerprint = fingerprint
        self.first = first
        self._check_interval_s = check_interval_s
        self._clock = clock
        self._max_models = max_models
        self._home = home
        self._paths = dict(paths or {})
        self._known: OrderedDict[str, _Loaded] = OrderedDict()  # least recently used first
        # A model may be dropped while it is in use, and requested again: it need not be read twice.
        self._alive: WeakValueDictionary[tuple[str, TokenizerIdentity], KenLMScorer] = WeakValueDictionary()
        self._loading: dict[str, asyncio.Task[_Loaded]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="superdraft-ngram")
        if first is not None:
            self._known[first.name] = _Loaded(None, first)
            self._alive[_identity(first.manifest)] = first.scorer

    def is_loaded(self, name: str) -> bool:
        """Whether the model is loaded."""
        return name in self._known and isinstance(self._known[name].outcome, NgramModel)

    async def get(self, name: str) -> NgramModel:
        """The model of this name, as it is on disk, or was at the last check.

        Raises:
            NgramModelNotFoundError: there is no such model.
            BrokenNgramModelError: the model is damaged.
            TokenizerMismatchError: the model was built for another tokenizer.
        """
        loaded, now_s = self._known.get(name), self._clock()
        if loaded is None or now_s - loaded.checked_s >= self._check_interval_s:
            loaded = await self._checked(name)
            loaded.checked_s = now_s
        self._keep(name, loaded)
        if isinstance(loaded.outcome, NgramModelError):
            raise loaded.outcome.with_traceback(None)
        return loaded.outcome

    async def _checked(self, name: str) -> _Loaded:
        """The model, loaded anew if its files have changed."""
        version = self._version(name)
        if version is None and name in self._known:
            await asyncio.sleep(_REPLACING_S)  # it may be in the middle of being replaced, which takes two renames
            version = self._version(name)
        if version is None:
            self._known.pop(name, None)
            raise NgramModelNotFoundError(f"There is no n-gram model {name!r}.")
        loaded = self._known.get(name)
        if loaded is None or loaded.version != version:
            loaded = await self._load(name)
        return loaded

    async def listed(self) -> list[ListedModel]:
        """All models that have a name, sorted by name."""
        return await self._in_thread(self._list)

    def _list(self) -> list[ListedModel]:
        models = {model.name: model for model in list_ngram_models(self._home)}
        models |= {name: ListedModel.of(name, folder) for name, folder in self._paths.items()}
        return [models[name] for name in sorted(models)]

    def _keep(self, name: str, loaded: _Loaded) -> None:
        self._known[name] = loaded
        self._known.move_to_end(name)
        models = [other for other in self._known if self.is_loaded(other)]
        droppable = [other for other in models if self.first is None or other != self.first.name]
        for other in droppable[: max(0, len(models) - self._max_models)]:
            del self._known[other]

    def _folder(self, name: str) -> Path | None:
        return self._paths.get(name) or named_model_folder(name, self._home)

    def _version(self, name: str) -> _Version | None:
        """Identity of the model's files; None: there is no such model. Takes a few system calls and reads nothing."""
        folder = self._folder(name)
        manifest = None if folder is None else _identity_of_file(folder / MANIFEST_FILE)
        return None if folder is None or manifest is None else (manifest, _identity_of_file(folder / BINARY_FILE))

    async def _load(self, name: str) -> _Loaded:
        """Load a model, once for all requests that wait for it."""
        task = self._loading.get(name)
        if task is None:
            task = asyncio.create_task(self._in_thread(lambda: self._load_here(name)))
            self._loading[name] = task
            task.add_done_callback(lambda _: self._loading.pop(name, None))
        return await asyncio.shield(task)  # if one of them is cancelled, the others still wait

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _load_here(self, name: str) -> _Loaded:
        for _ in range(_MAX_ATTEMPTS):
            version = self._version(name)
            outcome = self._open(name)
            if version == self._version(name):
                break  # otherwise it was replaced meanwhile, and parts of two models may have been read
        if isinstance(outcome, BrokenNgramModelError):
            log.error("ngram_model_damaged", ngram_model=name, problem=str(outcome))
        return _Loaded(version, outcome)

    def _open(self, name: str) -> NgramModel | NgramModelError:
        folder = self._folder(name)
        if folder is None:
            return NgramModelNotFoundError(f"There is no n-gram model {name!r}.")
        try:
            manifest = Manifest.read(folder)
            manifest.verify_tokenizer(self.fingerprint)
            scorer = self._alive.get(_identity(manifest))
            if scorer is None:
                scorer = open_scorer(folder, manifest)
            else:
                manifest.verify_binary(folder)
        except NgramModelError as error:
            return error
        self._alive[_identity(manifest)] = scorer
        return NgramModel(scorer, manifest, folder)


def _identity(manifest: Manifest) -> tuple[str, TokenizerIdentity]:
    """Identity of a scorer's contents."""
    return manifest.binary_sha256, manifest.tokenizer


def _identity_of_file(path: Path) -> _FileIdentity | None:
    try:
        file = path.stat()
    except OSError:
        return None
    return file.st_dev, file.st_ino, file.st_mtime_ns, file.st_size
