"""The personal n-gram models of this server: one for each key and user, on disk and, while it is used, in memory."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar
from weakref import WeakValueDictionary

import structlog
from filelock import FileLock, Timeout

from superdraft.decoding.ngram import NgramScorer
from superdraft.ngram_models.home import superdraft_home
from superdraft.ngram_models.scoring.accepted_texts import FILE_MODE, AcceptedTexts, make_private_folder
from superdraft.ngram_models.scoring.in_context import InContextScorer
from superdraft.ngram_models.scoring.mixture import UniformScorer
from superdraft.ngram_models.scoring.personal import AcceptedText, PersonalModel, end_of
from superdraft.server.errors import SettingsError
from superdraft.server.settings import Settings
from superdraft.server.wires.common import Prompt

# In memory, of all users together: about 256 MB.
_MAX_LOADED_TOKENS: Final = 262_144
# Most users have no model; to know that takes a look at the disk.
_MAX_LOADED_USERS: Final = 4096
# A file is written anew when it has that many more lines than texts that are still counted, and twice as many.
_MAX_OLD_LINES: Final = 256
_MAX_PROMPT_END_TOKENS = 32

T = TypeVar("T")

log = structlog.get_logger(__name__)


class PersonalTokenizer(Protocol):
    """What personal models ask of the language model's tokenizer."""

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token -> id."""

    @property
    def eos_token_ids(self) -> Collection[int]:
        """Ids that end a text."""

    def encode(self, text: str) -> Sequence[int]:
        """The text as token ids."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of these token ids."""


class Owner(NamedTuple):
    """Whose a model is: digests, so that neither memory nor file names hold what a client sent."""

    key: str
    user: str


def owner_of(caller: str, user: str | None) -> Owner:
    """The owner of the models of a key's name, empty for none, and a request's `user`; an empty one is none."""
    return Owner(*(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in (caller, user or "")))


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Personal:
    """One owner's file and, once it was read, the model of it."""

    file: AcceptedTexts
    model: PersonalModel | None = None
    num_lines: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class PersonalModels:
    """Finds, feeds and deletes the models of all users.

    Files are read and written by a thread of their own. What is learned is on the disk before `learn` returns. For one
    event loop; the scorers are for any thread.

    Args:
        tokenizer: the language model's.
        settings: the server's.

    Raises:
        SettingsError: another server uses the same folder, or the folder cannot be used.
    """

    def __init__(self, tokenizer: PersonalTokenizer, settings: Settings) -> None:
        self.weight = settings.personal_weight
        self.max_tokens = settings.max_personal_tokens
        self._allows_anonymous = settings.personal_anonymous
        self._max_users = settings.max_personal_users
        self._tokenizer = tokenizer
        self._folder = superdraft_home(settings.home) / "personal"
        self._used: OrderedDict[Owner, _Personal] = OrderedDict()  # least recently used first
        # One that was dropped may still be waited for; there must not be a second one beside it.
        self._alive: WeakValueDictionary[Owner, _Personal] = WeakValueDictionary()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="superdraft-personal")
        self._lock = _locked(self._folder)

    def allows(self, caller: str) -> bool:
        """Whether a caller has models; an empty name is that of callers without a key."""
        return bool(caller) or self._allows_anonymous

    def end_of(self, prompt: Prompt) -> str:
        """As much of a valid prompt's end as is remembered with a text that was accepted after it."""
        text = prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt[-_MAX_PROMPT_END_TOKENS:])
        return end_of(text)

    async def scorer(
        self, caller: str, user: str | None, background: NgramScorer[Any] | None
    ) -> NgramScorer[Any] | None:
        """The n-grams of what a user has accepted over another n-gram model; that one alone if there are none.

        A model that cannot be read stops nobody: it has no say.
        """
        if not self.allows(caller):
            return background
        try:
            model = await self._model(owner_of(caller, user))
        except OSError as error:
            log.error("personal_model_not_read", reason=error.strerror)
            return background
        if not model.num_tokens:
            return background
        return InContextScorer(background or UniformScorer(len(self._tokenizer.vocabulary)), self.weight, model.view())

    async def contents(self, owner: Owner) -> tuple[list[AcceptedText], int]:
        """What is remembered of an owner, the oldest first, and how many tokens of it are counted. Raises OSError."""
        model = await self._model(owner)
        return model.texts, model.num_tokens

    async def learn(self, owner: Owner, text: AcceptedText) -> None:
        """Remember a text that was accepted; returns when it is on the disk.

        Raises:
            OSError: it could not be written, and is not remembered.
        """
        personal = self._of(owner)
        async with personal.lock:
            model = await self._loaded(personal)
            for forgotten in await self._in_thread(lambda: self._append(personal.file, text)):
                self._used.pop(forgotten, None)
            model.add([text])
            personal.num_lines += 1
            await self._compact(personal, model)
        self._drop_least_used()

    async def delete(self, owner: Owner) -> bool:
        """Forget an owner's texts; returns when they are gone from the disk, and whether there were any."""
        personal = self._of(owner)
        async with personal.lock:
            had_texts = bool((await self._loaded(personal)).num_tokens)
            await self._in_thread(personal.file.delete)
            personal.model, personal.num_lines = self._new_model(), 0
        return had_texts

    def close(self) -> None:
        """Finish what is being written, and let other servers have the folder."""
        self._thread.shutdown()
        self._lock.release()

    async def _model(self, owner: Owner) -> PersonalModel:
        personal = self._of(owner)
        if personal.model is not None:  # without waiting for one that learns
            return personal.model
        async with personal.lock:
            model = await self._loaded(personal)
        self._drop_least_used()
        return model

    def _of(self, owner: Owner) -> _Personal:
        personal = self._alive.get(owner)
        if personal is None:
            personal = _Personal(AcceptedTexts(self._folder / owner.key / f"{owner.user}.jsonl"))
            self._alive[owner] = personal
        self._used[owner] = personal
        self._used.move_to_end(owner)
        return personal

    async def _loaded(self, personal: _Personal) -> PersonalModel:
        """The model; the lock is held."""
        if personal.model is not None:
            return personal.model
        model, num_lines = await self._in_thread(lambda: self._load(personal.file))
        personal.model, personal.num_lines = model, num_lines
        return model

    def _drop_least_used(self) -> None:
        num_tokens = sum(personal.model.num_tokens for personal in self._used.values() if personal.model is not None)
        while len(self._used) > 1 and (num_tokens > _MAX_LOADED_TOKENS or len(self._used) > _MAX_LOADED_USERS):
            _, dropped = self._used.popitem(last=False)
            num_tokens -= dropped.model.num_tokens if dropped.model is not None else 0

    async def _compact(self, personal: _Personal, model: PersonalModel) -> None:
        texts = model.texts
        if personal.num_lines <= 2 * len(texts) + _MAX_OLD_LINES:
            return
        try:
            await self._in_thread(lambda: personal.file.replace(texts))
            personal.num_lines = len(texts)
        except OSError as error:  # the file is only longer than it need be
            log.warning("personal_model_not_compacted", reason=error.strerror)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # In the thread.

    def _new_model(self) -> PersonalModel:
        return PersonalModel(self._tokenizer.encode, self._tokenizer.eos_token_ids, max_tokens=self.max_tokens)

    def _load(self, file: AcceptedTexts) -> tuple[PersonalModel, int]:
        texts, model = file.read(), self._new_model()
        model.add(texts)
        return model, len(texts)

    def _append(self, file: AcceptedTexts, text: AcceptedText) -> list[Owner]:
        """Write a text; returns whose files went to make room for a new one: those that were not fed for longest."""
        forgotten = []
        if not file.path.exists():
            others = sorted(file.path.parent.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
            for path in others[: max(0, len(others) - self._max_users + 1)]:
                AcceptedTexts(path).delete()
                forgotten.append(Owner(path.parent.name, path.stem))
        file.append(text)
        return forgotten


def _locked(folder: Path) -> FileLock:
    """The folder for this process alone: another one would not see what this one learns, and undo it."""
    lock = FileLock(folder / "lock", mode=FILE_MODE, blocking=False, thread_local=False)
    try:
        make_private_folder(folder)
        lock.acquire()
    except Timeout:
        raise SettingsError(
            f"Another server keeps its personal models in {folder}. Stop it, or give this one its own --home."
        ) from None
    except OSError as error:
        raise SettingsError(f"Personal models cannot be kept in {folder}: {error.strerror}.") from None
    return lock
