"""API keys and their scopes.

A key is 256 random bits, so its plain SHA-256 gives nothing away; only digests are kept. Keys come from a TOML file,
which is read again when it changes, and from the environment.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import structlog
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from superdraft.decoding.durable import new_file
from superdraft.server.errors import SettingsError
from superdraft.server.settings import RateLimit, Settings

Scope = Literal["complete", "metrics", "admin"]

ALL_SCOPES: tuple[Scope, ...] = ("complete", "metrics", "admin")
PREFIX = "sd-"  # lets people and secret scanners recognise a key
MIN_LENGTH = 20
RECHECK_S = 1.0
SETTLE_S = 2.0  # an editor or a script that rewrites the file in place takes milliseconds
_LOCK_TIMEOUT_S = 10
_NAME = r"[A-Za-z0-9._-]{1,64}"

log = structlog.get_logger(__name__)


class ApiKey(BaseModel):
    """A known key: one `[[key]]` table of the file.

    Attributes:
        name: for people, logs and limits; unique.
        sha256: hexadecimal digest of the key.
        scopes: what the key may be used for; `admin` includes all others.
        rate_limit: requests per time; None: the server's.
        max_concurrent: requests at once; None: the server's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=f"^{_NAME}$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", repr=False)]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    rate_limit: RateLimit | None = None
    max_concurrent: Annotated[int | None, Field(ge=1)] = None

    def allows(self, scope: Scope) -> bool:
        """Whether the key may be used for this scope."""
        return scope in self.scopes or "admin" in self.scopes


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: list[ApiKey] = []


class ApiKeys:
    """The keys that are currently valid.

    If the file is damaged or removed while the server runs, the keys read last stay valid, and the log says so. The
    server is never opened to everyone because of that. Who rewrites the file in place empties it first: so keys that
    disappear or change count only when the file has not been written for `SETTLE_S`, or when they have been missing at
    every check for as long, so that a file that is written all the time cannot keep a revoked key alive.

    Args:
        given: comma-separated `name=key` pairs, each with every scope; None: none.
        file: made by `superdraft keys new`; None: none.
        clock: monotonic seconds.
        wall_clock: seconds since 1970, for the age of the file.

    Raises:
        SettingsError: a key is too short, a name occurs twice, or the file cannot be used.
    """

    def __init__(
        self,
        given: str | None = None,
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._given = _parse_given(given) if given is not None else []
        self._file = file
        self._clock = clock
        self._wall_clock = wall_clock
        self._problem: str | None = None
        self._missing_since_s: float | None = None
        self._stamp = _stamp_of(file) if file is not None else None
        self._keys = _joined(self._given, read_keys(file) if file is not None else [])
        self._checked_s = clock()
        self.are_required = given is not None or file is not None
        if self.are_required and not self._keys:
            raise SettingsError(f"There is no API key in {file or 'SUPERDRAFT_API_KEYS'}: run `superdraft keys new`.")

    @classmethod
    def of(cls, settings: Settings) -> "ApiKeys":
        """The keys that the settings name.

        Raises:
            SettingsError: as above.
        """
        given = settings.api_keys.get_secret_value() if settings.api_keys is not None else None
        return cls(given, settings.api_keys_file)

    def find(self, key: str) -> ApiKey | None:
        """The known key; None: it is not valid."""
        self._refresh()
        digest = digest_of(key)
        found = None
        for known in self._keys:  # always all of them, so that the time taken reveals nothing
            if hmac.compare_digest(known.sha256, digest):
                found = known
        return found

    def _refresh(self) -> None:
        """Read the file again if it has changed. It is checked at most once per second."""
        if self._file is None or self._clock() - self._checked_s < RECHECK_S:
            return
        self._checked_s = self._clock()
        stamp = _stamp_of(self._file)  # before reading: what is written meanwhile is read at the next check
        if stamp == self._stamp:
            self._problem = self._missing_since_s = None
            return
        try:
            keys = _joined(self._given, read_keys(self._file))
        except SettingsError as error:
            if self._problem != str(error):
                log.error("api_keys_not_reloaded", reason=str(error))
            self._problem, self._missing_since_s = str(error), None
            return
        if not set(self._keys) <= set(keys) and not self._may_lose_keys(self._file):
            return
        self._stamp, self._keys = stamp, keys
        self._problem = self._missing_since_s = None
        log.info("api_keys_reloaded", keys=len(keys))

    def _may_lose_keys(self, file: Path) -> bool:
        """Whether the file, which lacks keys or has changed some, is taken for complete."""
        stamp = _stamp_of(file)  # after reading: the file may have been emptied just before
        age_s = self._wall_clock() - stamp[0] / 1e9 if stamp is not None else 0.0
        if not 0 <= age_s < SETTLE_S:  # unknown for a file that is dated in the future
            return True
        if self._missing_since_s is None:
            self._missing_since_s = self._checked_s
            log.warning(
                "api_keys_missing",
                reason=f"{file} was just written and lacks keys, or has changed some: they stay valid for "
                f"{SETTLE_S:g} seconds, in case it is still being written.",
            )
        return self._checked_s - self._missing_since_s >= SETTLE_S


def digest_of(key: str) -> str:
    """The hexadecimal SHA-256 of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(file: Path) -> list[ApiKey]:
    """The keys in a file.

    Raises:
        SettingsError: the file cannot be read, or its contents are not valid.
    """
    return _parse_keys(_read_text(file), file)


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")  # read_text would change the line ends
    except OSError as error:
        raise SettingsError(f"The API keys in {file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise SettingsError(f"{file} is not valid TOML: {error}.") from None


def _parse_keys(text: str, file: Path) -> list[ApiKey]:
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{file} is not valid TOML: {error}.") from None
    try:
        return _KeyFile.model_validate(content).key
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{where} in {file}: {first['msg']}.") from None


def add_key(file: Path, name: str, scopes: Sequence[Scope]) -> str:
    """Make a key and add its digest to the end of a file. A new file can be read by its owner only.

    Returns:
        The key, which is stored nowhere.

    Raises:
        SettingsError: the name is taken or not allowed, or the file cannot be used. The file is as it was before.
    """
    if re.fullmatch(_NAME, name) is None:
        raise SettingsError(f"A key's name must have 1 to 64 of the characters A-Z a-z 0-9 . _ -, got {name!r}.")
    try:
        with FileLock(file.resolve().with_name(f".{file.name}.lock"), timeout=_LOCK_TIMEOUT_S, mode=0o600):
            return _add_key(file, name, scopes)
    except Timeout:
        raise SettingsError(f"Another command is changing {file}: try again.") from None
    except OSError as error:
        raise SettingsError(f"The key cannot be written to {file}: {error.strerror}.") from None


def _add_key(file: Path, name: str, scopes: Sequence[Scope]) -> str:
    text = _read_text(file) if file.exists() else ""
    known_keys = _parse_keys(text, file)
    if any(known.name == name for known in known_keys):
        raise SettingsError(f"There is a key named {name} in {file}: choose another name, or delete its table.")
    key = PREFIX + secrets.token_urlsafe(32)
    added = ApiKey(name=name, sha256=digest_of(key), scopes=frozenset(scopes))
    quoted = ", ".join(f'"{scope}"' for scope in dict.fromkeys(scopes))
    line_end = "" if not text or text.endswith("\n") else "\n"
    text += f'{line_end}[[key]]\nname = "{name}"\nsha256 = "{added.sha256}"\nscopes = [{quoted}]\n\n'
    if _parse_keys(text, file) != [*known_keys, added]:
        raise SettingsError(f"A [[key]] table cannot be added to the end of {file}: rewrite its keys as such tables.")
    _replace(file.resolve(), text)
    return key


def _replace(file: Path, text: str) -> None:
    """Replace a file in one step, since a server may read it at any time. Its mode and its owner stay the same."""
    old = file.stat() if file.exists() else None
    with new_file(file) as partial:
        partial.touch(0o600, exist_ok=False)
        if old is not None:
            os.chown(partial, old.st_uid, old.st_gid)
            partial.chmod(stat.S_IMODE(old.st_mode))
        partial.write_bytes(text.encode())


def _parse_given(given: str) -> list[ApiKey]:
    keys = []
    for pair in filter(None, map(str.strip, given.split(","))):
        name, _, key = pair.partition("=")
        if re.fullmatch(_NAME, name) is None or len(key) < MIN_LENGTH:
            raise SettingsError(
                f"SUPERDRAFT_API_KEYS must be comma-separated name=key pairs, each key of at least {MIN_LENGTH} "
                "characters; `superdraft keys new` makes one."
            )
        keys.append(ApiKey(name=name, sha256=digest_of(key), scopes=frozenset(ALL_SCOPES)))
    return keys


def _joined(given: list[ApiKey], in_file: list[ApiKey]) -> list[ApiKey]:
    keys = [*given, *in_file]
    names = [key.name for key in keys]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingsError(
            f"Two API keys are named {twice}. Sessions and limits go by the name: rename one of the keys."
        )
    return keys


def _stamp_of(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
