"""Settings of the server.

Each field of `Settings` is an option of `superdraft serve` (`server.cli.settings_options`), an environment variable
`SUPERDRAFT_<NAME>` and a key of the TOML file. Options win over the environment, the environment over the file, the
file over the defaults. No other module of the server reads the environment, except that with traces OpenTelemetry's
packages read their own variables.
"""

import difflib
import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, get_args
from urllib.parse import urlsplit

import limits
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, SecretBytes, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.params import SELECTIONS
from superdraft.server.errors import SettingsError

ENV_PREFIX = "SUPERDRAFT_"
CONFIG_VARIABLE = ENV_PREFIX + "CONFIG"
CLIENT_VARIABLES = (ENV_PREFIX + "URL", ENV_PREFIX + "API_KEY")
"""Read by the Python client; in the environment of a server they mean nothing."""

# Kubernetes describes the Services of a namespace to its pods: SUPERDRAFT_SERVICE_HOST, SUPERDRAFT_PORT_80_TCP_ADDR.
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT|PORT)(_|$)")

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


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ValueError('must be an IP address or a network, such as "10.0.0.7" or "10.0.0.0/24"') from None
    return text


def _listed(value: Any) -> Any:
    """The values of a list in the environment: separated by commas, or as JSON."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(",") if part.strip()]
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("must be values separated by commas, or a JSON list") from None


_OneOfMany = TypeVar("_OneOfMany")
Several = Annotated[tuple[_OneOfMany, ...], NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """Settings of the server. Arguments win over the environment, the environment over the defaults.

    A field's description is the help text of its option. Secrets have the type SecretStr: `superdraft config show` and
    error messages hide them, and they are no options.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    home: Path | None = Field(
        default=None,
        description="Folder for downloaded models and for n-gram models. If not set, the user's cache folder.",
    )
    model: str = Field(
        default="smollm2-135m",
        min_length=1,
        description="Language model: a name that `superdraft models list` shows, a folder, a .gguf file, or a hub id.",
    )
    served_model_name: str | None = Field(
        default=None,
        min_length=1,
        description="Name by which requests and answers call the model. If not set, the model's own name.",
    )
    ngram_model: str = Field(
        default="auto",
        min_length=1,
        description="N-gram model: a name that `superdraft ngram list` shows, a folder, none, or auto (the one "
        "shipped for the language model, if any).",
    )
    max_ngram_models: int = Field(
        default=8, ge=1, description="Maximum number of n-gram models kept open, of those that requests name."
    )
    feedback: bool = Field(default=True, description="Count which drafts users accept and dismiss, by rank.")
    feedback_file: Path | None = Field(
        default=None,
        description="File to append what users did with drafts to, without any text: JSON lines for "
        "`superdraft lab tune --display --events`.",
    )
    runner: Literal["auto", "torch", "llamacpp"] = Field(
        default="auto",
        description="What runs the model: torch, llamacpp for a .gguf file as it is, or auto (llama.cpp for a .gguf "
        "file where it is installed and torch lacks fast kernels or memory, otherwise torch).",
    )
    gpu_layers: int | None = Field(
        default=None,
        ge=0,
        description="With llama.cpp, number of the model's layers that a GPU runs. If not set, all, where "
        "llama-cpp-python was built for a GPU.",
    )
    device: str = Field(default="auto", description="Device to run the model on: auto, cpu, cuda or cuda:N.")
    dtype: str = Field(
        default="auto", description="Data type of the weights: auto, float32, bfloat16, float16 or int4."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the model. Only for models whose authors you trust."
    )
    max_model_len: int = Field(default=2048, ge=1, description="Maximum length of a prompt and its draft, in tokens.")
    kv_memory: ByteSize = Field(
        default=ByteSize(4 * 1024**3),
        ge=1,
        description="Memory for the KV cache, reserved at start and never exceeded.",
    )
    memory_check: bool = Field(
        default=True, description="Refuse a model, before it is loaded, if there is not enough free memory for it."
    )
    num_slots: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of requests that run at once. Each slot holds the prompt and the drafts of one, or "
        "keeps the last ones for reuse. If not set, as many as fit into --kv-memory, at most 64 (8 with llama.cpp).",
    )
    num_threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads for the model. If not set, the first start with a model measures how many are fastest "
        "and remembers the result in the home folder; with llama.cpp, all cores.",
    )
    max_prefill_tokens: int = Field(
        default=256, ge=1, description="Maximum number of prompt tokens processed between two decode steps."
    )
    max_num_drafts: int = Field(default=32, ge=1, description="Maximum number of drafts a request may ask for.")
    max_batch_prompts: int = Field(
        default=32, ge=1, description="Maximum number of prompts in one request to /v1/completions."
    )
    max_request_tokens: int = Field(
        default=8192,
        ge=1,
        description="Maximum number of tokens that one request may decode: prompts x rows x max_tokens.",
    )
    prompt_too_long: Literal["error", "truncate_left"] = Field(
        default="error",
        description="What to do with a prompt longer than --max-model-len allows: refuse it, or drop its oldest "
        "tokens.",
    )
    max_body_bytes: ByteSize = Field(
        default=ByteSize(1024 * 1024), ge=1, description="Maximum size of a request's body."
    )
    max_timeout_ms: int = Field(default=60_000, ge=1, description="Maximum timeout_ms of a request, in milliseconds.")
    default_strategy: Strategy = Field(
        default="superposed", description="Decoding strategy of requests that do not name one."
    )
    token_healing: bool = Field(
        default=True,
        description="Unless a request says otherwise, continue the text rather than its tokens: a draft can finish a "
        "half-typed word.",
    )
    document_start: bool = Field(
        default=True,
        description="Begin every text prompt with the model's start-of-document token, without which first words are "
        "predicted badly.",
    )
    fim: bool = Field(
        default=True,
        description="Fill gaps between two texts with the model's own fill-in-the-middle tokens, if it has any.",
    )
    special_tokens: bool = Field(
        default=True,
        description="Unless a request says otherwise, names of special tokens in the prompts of /v1/completions and "
        "/completion become these tokens, as some editors expect. Texts on other routes are always plain.",
    )
    editor_max_tokens: int = Field(
        default=16, ge=1, description="Maximum length of a draft on the routes for editors, in tokens."
    )
    editor_min_probability_shown: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Drafts less likely than this are withheld on the routes for editors, which then show nothing.",
    )
    fan_out: bool = Field(
        default=True, description="Let identical requests that arrive together share the drafts of one run."
    )
    fan_out_drafts: int = Field(
        default=3,
        ge=2,
        description="Number of drafts decoded at once for identical requests that share a run (see --fan-out).",
    )
    default_selection: Selection | None = Field(
        default=None,
        description="How drafts are picked, for requests that do not say: distinct (they begin with different words) "
        "or paper (Superposed Decoding as published). If not set, paper where the n-gram model's weight is set "
        "(--default-alpha), otherwise distinct.",
    )
    default_max_branches: int = Field(
        default=8, ge=1, description="Maximum number of model rows per request with the selection distinct."
    )
    default_min_probability: float = Field(
        default=0.01, ge=0, le=1, description="With the selection distinct, drafts less likely than this stop growing."
    )
    min_probability_shown: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Drafts less likely than this are withheld from requests that a pause in typing triggered.",
    )
    default_alpha: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Weight of the n-gram model, from 0 to 1. If not set, the value tuned for the n-gram model.",
    )
    default_tau: float | None = Field(
        default=None,
        ge=0.001,
        le=100,
        description="Temperature of the language model's scores before the n-gram model's are mixed in. If not set, "
        "the value tuned for the n-gram model.",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="TOML file of API keys, written by `superdraft keys new`. The keys themselves can instead be in "
        "the environment variable SUPERDRAFT_API_KEYS.",
    )
    api_keys: SecretStr | None = Field(  # never a flag: other users of the machine can read command lines
        default=None, description="API keys as name=key pairs, separated by commas."
    )
    allow_unauthenticated: bool = Field(
        default=False, description="Allow other machines to connect although there are no API keys."
    )
    allowed_hosts: Several[str] = Field(
        default=(),
        description="Host name, besides localhost, under which a local server without keys may be addressed. "
        "Repeatable.",
    )
    speculate: Literal["off", "idle"] = Field(
        default="idle",
        description="Whether the server works ahead of typing sessions while nothing else is to do (idle): it runs the "
        "request that would follow if the first draft were accepted.",
    )
    prefix_isolation: Literal["none", "key"] = Field(
        default="key",
        description="Who may reuse a kept prompt: key, requests with the same API key; none, all requests.",
    )
    rate_limit: RateLimit | None = Field(
        default=None, description="Maximum request rate per caller, such as 600/minute. If not set, there is no limit."
    )
    max_concurrent: int | None = Field(
        default=None, ge=1, description="Maximum number of running requests per caller. If not set, there is no limit."
    )
    cors_origins: Several[Annotated[str, AfterValidator(_origin)]] = Field(
        default=(), description="Origin whose web pages may send requests from a browser (CORS). Repeatable."
    )
    max_waiting: int = Field(
        default=64,
        ge=0,
        description="Maximum number of requests that wait for free slots; beyond it the oldest is refused.",
    )
    queue_timeout_ms: int = Field(
        default=25,
        ge=1,
        description="Maximum time that a request waits for free slots, in milliseconds; the newest is served first.",
    )
    target_latency_ms: int = Field(
        default=2000,
        ge=1,
        description="Time in which accepted requests should be answered, in milliseconds. Under load drafts "
        "end sooner; what could not be answered in time even so is refused.",
    )
    max_connections: int = Field(
        default=2000, ge=1, description="Maximum number of open connections; beyond it the longest idle is closed."
    )
    max_connections_per_address: int = Field(
        default=256,
        ge=1,
        description="Maximum number of open connections from one IPv4 address or IPv6 network of 64 bits.",
    )
    proxy_networks: Several[Annotated[str, AfterValidator(_network)]] = Field(
        default=(),
        description="Address or network of a proxy whose X-Forwarded-For names the client. Repeatable.",
    )
    receive_timeout_s: float = Field(
        default=20.0, gt=0, description="Seconds for a request to arrive, and for a client to read its answer."
    )
    shutdown_grace_s: float = Field(
        default=10.0, ge=0, le=3600, description="Seconds that running requests may take at shutdown."
    )
    ray: bool = Field(
        default=False, description="Serve with several copies of the model (replicas) behind one address, on Ray Serve."
    )
    ray_address: str | None = Field(
        default=None,
        min_length=1,
        description="With --ray, the address of a Ray cluster, or auto. If not set, one is started on this machine.",
    )
    ray_min_replicas: int = Field(default=1, ge=1, description="With --ray, the minimum number of replicas.")
    ray_max_replicas: int = Field(default=4, ge=1, description="With --ray, the maximum number of replicas.")
    ray_replica_cpus: float = Field(
        default=1.0, gt=0, description="With --ray, CPU cores reserved per replica, and threads of its model."
    )
    ray_replica_gpus: float = Field(default=0.0, ge=0, description="With --ray, GPUs reserved per replica.")
    ray_target_requests: int | None = Field(
        default=None,
        ge=1,
        description="With --ray, running requests per replica that scaling aims at. If not set, half of --num-slots.",
    )
    ray_upscale_delay_s: float = Field(
        default=10.0, ge=0, description="With --ray, seconds above the target load before a replica is added."
    )
    ray_downscale_delay_s: float = Field(
        default=300.0, ge=0, description="With --ray, seconds below the target load before a replica is removed."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="Least severe level that is logged. At info, a request is logged if it failed; at debug, always.",
    )
    log_format: Literal["console", "json"] = Field(default="console", description="Format of log lines.")
    traces: Literal["off", "otlp"] = Field(
        default="off",
        description="Traces of requests, without any text: off, or otlp, sent to an OpenTelemetry collector over HTTP. "
        "Its address is in OTEL_EXPORTER_OTLP_ENDPOINT.",
    )

    def engine_config(self) -> EngineConfig:
        """The engine's part of the settings."""
        return EngineConfig(
            max_model_len=self.max_model_len,
            kv_memory_bytes=int(self.kv_memory),
            num_slots=self.num_slots,
            max_prefill_tokens=self.max_prefill_tokens,
            target_latency_s=self.target_latency_ms / 1000,
            max_num_drafts=self.max_num_drafts,
            max_candidates_per_draft=max(1024, self.max_num_drafts**2),  # always allows the default, k squared
            document_start=self.document_start,
            prompt_too_long=self.prompt_too_long,
        )


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
