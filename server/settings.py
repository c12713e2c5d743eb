"""Settings of the server: from flags, the environment (`SUPERDRAFT_<NAME>`), a TOML file, and defaults, in this order.

Nothing else in the server reads the environment.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args
from urllib.parse import urlsplit

import limits
from pydantic import AfterValidator, ByteSize, Field, SecretBytes, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.params import SELECTIONS
from superdraft.server.errors import SettingsError

ENV_PREFIX = "SUPERDRAFT_"
CONFIG_VARIABLE = ENV_PREFIX + "CONFIG"

Strategy = Literal["superposed", "sample", "greedy", "sample+superposed"]
if TYPE_CHECKING:
    Selection = str
else:
    Selection = Literal[SELECTIONS]  # the registered rules, which a type checker cannot know


def _rate_limit(text: str) -> str:
    try:
        limits.parse(text)
    except ValueError:
        raise ValueError('must be a number of requests per time, such as "600/minute" or "20/second"') from None
    return text


RateLimit = Annotated[str, AfterValidator(_rate_limit)]
"""Requests per time, in the notation of the package `limits`."""


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if text == "null" or not parts.scheme or not parts.netloc or text != f"{parts.scheme}://{parts.netloc}":
        raise ValueError('must be an origin such as "https://editor.example:8443", exactly as browsers send it')
    return text


class Settings(BaseSettings):
    """Settings of the server. Arguments win over the environment, the environment over the defaults.

    What must not be shown has the type SecretStr: `superdraft config show` and errors mask it.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 picks a free port")
    home: Path | None = Field(default=None, description="cache folder of models; None: the user's cache folder")
    model: str = Field(default="smollm2-135m", min_length=1)
    served_model_name: str | None = Field(default=None, min_length=1, description="None: the model's own name")
    ngram_model: str = Field(default="auto", min_length=1, description='"auto", "none", a name or a path')
    max_ngram_models: int = Field(default=8, ge=1, description="n-gram models kept open for the next request")
    feedback: bool = Field(default=True, description="count what users did with drafts, by rank")
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    max_model_len: int = Field(default=2048, ge=1)
    kv_memory: ByteSize = Field(
        default=ByteSize(4 * 1024**3), ge=1, description="of the KV cache, reserved at start and never more"
    )
    num_slots: int | None = Field(default=None, ge=1, description="None: as many as fit in kv_memory, at most 64")
    num_threads: int | None = Field(default=None, ge=1, description="on a CPU; None: all cores but one")
    max_prefill_tokens: int = Field(default=256, ge=1, description="prompt tokens between two decode steps")
    max_num_drafts: int = Field(default=32, ge=1)
    max_batch_prompts: int = Field(default=32, ge=1, description="most prompts in one /v1/completions request")
    prompt_too_long: Literal["error", "truncate_left"] = "error"
    max_body_bytes: int = Field(default=1024 * 1024, ge=1)
    max_timeout_ms: int = Field(default=60_000, ge=1, description="largest timeout_ms of a request")
    default_strategy: Strategy = Field(default="superposed", description="for requests that don't say")
    token_healing: bool = Field(
        default=True,
        description="for text prompts of requests that don't say: go on from the text, not its tokens",
    )
    document_start: bool = Field(default=True, description="begin every text prompt with the token of a new document")
    fim: bool = Field(default=True, description="fill gaps with the model's own tokens for that, if it has them")
    editor_max_tokens: int = Field(default=16, ge=1, description="longest draft on the editors' routes")
    fan_out: bool = Field(default=True, description="twin requests share the drafts of one run")
    fan_out_drafts: int = Field(default=3, ge=2, description="drafts of a run that twins may share")
    default_selection: Selection | None = Field(
        default=None, description="None: paper where an n-gram model's weight is set or tuned, distinct elsewhere"
    )
    default_max_branches: int = Field(default=3, ge=1, description="rows of a request, with selection distinct")
    default_min_probability: float = Field(
        default=0.01, ge=0, le=1, description="less probable drafts grow no further, with selection distinct"
    )
    default_alpha: float | None = Field(default=None, ge=0, le=1, description="None: tuned for the n-gram model")
    default_tau: float | None = Field(default=None, ge=0.001, le=100, description="None: tuned for the n-gram model")
    api_keys_file: Path | None = Field(default=None, description="TOML file that `superdraft keys new` writes")
    api_keys: SecretStr | None = Field(default=None, description="name=key pairs; not a flag, which others could see")
    allow_unauthenticated: bool = Field(default=False, description="to listen without keys beyond this machine")
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="names beside localhost of a server without keys on this machine"
    )
    rate_limit: RateLimit | None = Field(default=None, description='of each caller, such as "600/minute"')
    max_concurrent: int | None = Field(default=None, ge=1, description="requests of each caller at once")
    cors_origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        default=(), description="whose pages may ask from a browser"
    )
    max_waiting: int = Field(default=64, ge=0, description="requests at the door of a full server; the oldest goes")
    queue_timeout_ms: int = Field(default=25, ge=1, description="how long a request waits there, the newest first")
    max_connections: int = Field(default=2000, ge=1, description="open at once; then the longest idle is closed")
    receive_timeout_s: float = Field(default=20.0, gt=0, description="for a request to arrive, and for a stuck reader")
    shutdown_grace_s: float = Field(default=10.0, ge=0, le=3600, description="for running requests at shutdown")
    ray: bool = Field(default=False, description="several replicas, with Ray Serve")
    ray_address: str | None = Field(default=None, min_length=1, description="of a Ray cluster; None: one starts here")
    ray_min_replicas: int = Field(default=1, ge=1)
    ray_max_replicas: int = Field(default=4, ge=1)
    ray_replica_cpus: float = Field(default=1.0, gt=0, description="kept for each replica; and its model's threads")
    ray_replica_gpus: float = Field(default=0.0, ge=0, description="likewise")
    ray_target_requests: int | None = Field(default=None, ge=1, description="of a replica; None: half its slots")
    ray_upscale_delay_s: float = Field(default=10.0, ge=0, description="of more requests than that, before it")
    ray_downscale_delay_s: float = Field(default=300.0, ge=0, description="of less")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"

    def engine_config(self) -> EngineConfig:
        """The part of the settings that the engine keeps."""
        return EngineConfig(
            max_model_len=self.max_model_len,
            kv_memory_bytes=int(self.kv_memory),
            num_slots=self.num_slots,
            max_prefill_tokens=self.max_prefill_tokens,
            max_num_drafts=self.max_num_drafts,
            max_candidates_per_draft=max(1024, self.max_num_drafts**2),  # the default, k squared, is always allowed
            document_start=self.document_start,
            prompt_too_long=self.prompt_too_long,
        )


class Origin(NamedTuple):
    """Where a value comes from.

    Attributes:
        kind: what sort of place.
        place: the flag, the variable or the file.
    """

    kind: Literal["flag", "environment", "file"]
    place: str


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings of `settings_and_origins`."""
    return settings_and_origins(flags)[0]


def settings_and_origins(flags: Mapping[str, Any] | None = None) -> tuple[Settings, dict[str, Origin]]:
    """Read the TOML file if one is named, then the environment, and lay the flags that were given over both.

    Args:
        flags: values from the command line by setting name, and `config`, the file, for which `SUPERDRAFT_CONFIG`
            stands in; None entries count as not given.

    Returns:
        The settings, and where each comes from that is not a default.

    Raises:
        SettingsError: a value is out of range, the file cannot be read, or a key of it or a `SUPERDRAFT_` variable
            names no setting.
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
    """Whether values of this type must not be shown."""
    return annotation in (SecretStr, SecretBytes) or any(map(is_secret, get_args(annotation)))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"The configuration file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise SettingsError(f"The configuration file {path} is not valid TOML: {error}.") from None
    for key in values:
        if key not in Settings.model_fields:
            close = _closest(key, Settings.model_fields)
            raise SettingsError(f"{key} in {path} is no setting; did you mean {close}?")
    return values


def _read_environment() -> dict[str, Any]:
    known = [ENV_PREFIX + name.upper() for name in Settings.model_fields]
    for variable in sorted(os.environ):
        name = variable.upper()
        if name.startswith(ENV_PREFIX) and name not in (*known, CONFIG_VARIABLE):
            close = _closest(name, [*known, CONFIG_VARIABLE])
            raise SettingsError(f"The environment variable {variable} names no setting; did you mean {close}?")
    try:
        return EnvSettingsSource(Settings)()
    except SourceError as error:  # a list or an object that is not JSON
        raise SettingsError(f"A {ENV_PREFIX} variable cannot be read: {error}.") from None


def _closest(name: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def _describe(item: Mapping[str, Any], origins: Mapping[str, Origin]) -> str:
    name = str(item["loc"][0]) if item["loc"] else "settings"
    origin = origins.get(name)
    place = name if origin is None else origin.place
    source = f"{name} in {place}" if origin is not None and origin.kind == "file" else place
    field = Settings.model_fields.get(name)
    got = "" if field is None or is_secret(field.annotation) else f", got {item['input']!r}"
    return f"{source} {item['msg'].removeprefix('Input ')}{got}"
