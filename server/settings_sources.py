"""Sources of the settings: flags, the environment and a TOML file.

No other module of the server reads the environment, except that with traces OpenTelemetry's packages read their own
variables.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import SecretBytes, SecretStr, ValidationError
from pydantic_settings import EnvSettingsSource

from superdraft.server.errors import SettingsError
from superdraft.server.settings import ENV_PREFIX, Settings

CONFIG_VARIABLE = ENV_PREFIX + "CONFIG"
CLIENT_VARIABLES = (ENV_PREFIX + "URL", ENV_PREFIX + "API_KEY")
"""Read by the Python client; in the environment of a server they mean nothing."""

# Kubernetes describes the Services of a namespace to its pods: SUPERDRAFT_SERVICE_HOST, SUPERDRAFT_PORT_80_TCP_ADDR.
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT|PORT)(_|$)")


def shown_bytes(size: int) -> str:
    """The exact size in the largest unit that divides it, in the notation that settings take: "4GiB"."""
    for unit, exponent in (("TiB", 4), ("GiB", 3), ("MiB", 2), ("KiB", 1)):
        if size > 0 and size % 1024**exponent == 0:
            return f"{size // 1024**exponent}{unit}"
    return f"{size}B"


class Origin(NamedTuple):
    """The source of a value.

    Attributes:
        kind: the kind of source.
        place: the name of the flag or the variable, or the path of the file.
    """

    kind: Literal["flag", "environment", "file"]
    place: str


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings of `settings_and_origins`."""
    return settings_and_origins(flags)[0]


def settings_and_origins(flags: Mapping[str, Any] | None = None) -> tuple[Settings, dict[str, Origin]]:
    """The settings from the flags, the environment and the TOML file, and where their values come from.

    Args:
        flags: values from the command line by setting name, and `config`, the path of the file (default: the value of
            `SUPERDRAFT_CONFIG`). None means not given.

    Returns:
        The settings, and the origin of every value that is not a default.

    Raises:
        SettingsError: a value is out of range, the file cannot be read, or a key of the file or a `SUPERDRAFT_`
            variable is not a setting.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    file = given.pop("config", None) or os.environ.get(CONFIG_VARIABLE)
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    if file is not None:
        in_file = _read_file(Path(file))
        values |= in_file
        origins |= {name: Origin("file", str(file)) for name in in_file}
    in_environment = _read_environment()
    values |= in_environment
    origins |= {name: Origin("environment", ENV_PREFIX + name.upper()) for name in in_environment}
    values |= given
    origins |= {name: Origin("flag", f"--{name.replace('_', '-')}") for name in given}
    try:
        return Settings(**values), origins
    except ValidationError as error:
        raise SettingsError("; ".join(_describe(item, origins) for item in error.errors())) from None


def is_secret(annotation: Any) -> bool:
    """Whether values of this type are secrets, which must not be shown."""
    return annotation in (SecretStr, SecretBytes) or any(map(is_secret, get_args(annotation)))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"The configuration file {path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or brackets in brackets in brackets
        raise SettingsError(f"The configuration file {path} is not valid TOML: {error}.") from None
    for key in values:
        if key not in Settings.model_fields:
            close = _closest(key, Settings.model_fields)
            raise SettingsError(f"{key} in {path} is not a setting; did you mean {close}?")
    return values


def _read_environment() -> dict[str, Any]:
    known = [ENV_PREFIX + name.upper() for name in Settings.model_fields]
    for variable in sorted(os.environ):
        name = variable.upper()
        if name.startswith(ENV_PREFIX) and name not in (*known, CONFIG_VARIABLE, *CLIENT_VARIABLES):
            close = _closest(name, [*known, CONFIG_VARIABLE])
            message = f"The environment variable {variable} is not a setting; did you mean {close}?"
            if "KUBERNETES_SERVICE_HOST" in os.environ and _SERVICE_LINK.search(name):
                message += " If Kubernetes set it, for a Service, set enableServiceLinks: false in the pod's spec."
            raise SettingsError(message)
    return EnvSettingsSource(Settings)()


def _closest(name: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def _describe(item: Mapping[str, Any], origins: Mapping[str, Origin]) -> str:
    name = str(item["loc"][0]) if item["loc"] else "settings"
    origin = origins.get(name)
    place = name if origin is None else origin.place
    source = f"{name} in {place}" if origin is not None and origin.kind == "file" else place
    field = Settings.model_fields.get(name)
    got = "" if field is None or is_secret(field.annotation) else f", got {item['input']!r}"
    problem = item["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if item["type"].startswith("byte_size"):
        problem = "must be a size such as 512MiB or 4GiB"
    return f"{source} {problem}{got}"
