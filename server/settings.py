"""Settings of the server.

Each field of `Settings` is an option of `superdraft serve` (`server.cli.settings_options`), an environment variable
`SUPERDRAFT_<NAME>` and a key of the TOML file. Options win over the environment, the environment over the file, the
file over the defaults (`server.settings_sources`).
"""

import ipaddress
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import limits
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.params import SELECTIONS

ENV_PREFIX = "SUPERDRAFT_"

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


def _field_of(panel: str) -> Callable[..., Any]:
    """Pydantic's `Field` for the settings of one panel of the help text."""
    return partial(Field, json_schema_extra={"panel": panel})


model_field, draft_field, network_field = _field_of("Model"), _field_of("Drafts"), _field_of("Network")
limit_field, replica_field, log_field = _field_of("Limits"), _field_of("Replicas"), _field_of("Logs and configuration")


class Settings(BaseSettings):
    """Settings of the server. Arguments win over the environment, the environment over the defaults.

    A field's description is the help text of its option. Secrets have the type SecretStr: `superdraft config show` and
    error messages hide them, and they are no options. The order is that of the help text.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    model: str = model_field(
        default="smollm2-135m",
        min_length=1,
        description="Language model: a name that `superdraft models list` shows, a folder, a .gguf file, or a hub id.",
    )
    home: Path | None = model_field(
        default=None,
        description="Folder for downloaded models and for n-gram models. If not set, the user's cache folder.",
    )
    served_model_name: str | None = model_field(
        default=None,
        min_length=1,
        description="Name by which requests and answers call the model. If not set, the model's own name.",
    )
    runner: Literal["auto", "torch", "llamacpp"] = model_field(
        default="auto",
        description="What runs the model: torch, llamacpp for a .gguf file as it is, or auto (llama.cpp for a .gguf "
        "file where it is installed and torch lacks fast kernels or memory, otherwise torch).",
    )
    gpu_layers: int | None = model_field(
        default=None,
        ge=0,
        description="With llama.cpp, number of the model's layers that a GPU runs. If not set, all, where "
        "llama-cpp-python was built for a GPU.",
    )
    device: str = model_field(default="auto", description="Device to run the model on: auto, cpu, cuda or cuda:N.")
    dtype: str = model_field(
        default="auto", description="Data type of the weights: auto, float32, bfloat16, float16 or int4."
    )
    trust_remote_code: bool = model_field(
        default=False, description="Run Python code that comes with the model. Only for models whose authors you trust."
    )
    max_model_len: int = model_field(
        default=2048, ge=1, description="Maximum length of a prompt and its draft, in tokens."
    )
    kv_memory: ByteSize = model_field(
        default=ByteSize(4 * 1024**3),
        ge=1,
        description="Memory for the KV cache, reserved at start and never exceeded.",
    )
    memory_check: bool = model_field(
        default=True, description="Refuse a model, before it is loaded, if there is not enough free memory for it."
    )
    num_slots: int | None = model_field(
        default=None,
        ge=1,
        description="Maximum number of requests that run at once. Each slot holds the prompt and the drafts of one, or "
        "keeps the last ones for reuse. If not set, as many as fit into --kv-memory, at most 64 (8 with llama.cpp).",
    )
    num_threads: int | None = model_field(
        default=None,
        ge=1,
        description="CPU threads for the model. If not set, the first start with a model measures how many are fastest "
        "and remembers the result in the home folder; with llama.cpp, all cores.",
    )
    max_prefill_tokens: int = model_field(
        default=256, ge=1, description="Maximum number of prompt tokens processed between two decode steps."
    )
    speculate: Literal["off", "idle"] = model_field(
        default="idle",
        description="Whether the server works ahead of typing sessions while nothing else is to do (idle): it runs the "
        "request that would follow if the first draft were accepted.",
    )
    prefix_isolation: Literal["none", "key"] = model_field(
        default="key",
        description="Who may reuse a kept prompt: key, requests with the same API key; none, all requests.",
    )
    ngram_model: str = draft_field(
        default="auto",
        min_length=1,
        description="N-gram model: a name that `superdraft ngram list` shows, a folder, none, or auto (the one "
        "shipped for the language model, if any).",
    )
    default_selection: Selection = draft_field(
        default="distinct",
        description="How drafts are picked, for requests that do not say: distinct (they begin with different words) "
        "or paper (Superposed Decoding as published).",
    )
    default_max_branches: int = draft_field(
        default=8, ge=1, description="Maximum number of model rows per request with the selection distinct."
    )
    min_probability_shown: float = draft_field(
        default=0.2,
        ge=0,
        le=1,
        description="Drafts less likely than this are withheld from requests that a pause in typing triggered.",
    )
    token_healing: bool = draft_field(
        default=True,
        description="Unless a request says otherwise, continue the text rather than its tokens: a draft can finish a "
        "half-typed word.",
    )
    special_tokens: bool = draft_field(
        default=True,
        description="Unless a request says otherwise, names of special tokens in the prompts of /v1/completions and "
        "/completion become these tokens, as some editors expect. Texts on other routes are always plain.",
    )
    fim: bool = draft_field(
        default=True,
        description="Fill gaps between two texts with the model's own fill-in-the-middle tokens, if it has any.",
    )
    editor_max_tokens: int = draft_field(
        default=16, ge=1, description="Maximum length of a draft on the routes for editors, in tokens."
    )
    editor_min_probability_shown: float = draft_field(
        default=0.0,
        ge=0,
        le=1,
        description="Drafts less likely than this are withheld on the routes for editors, which then show nothing.",
    )
    fan_out: int = draft_field(
        default=3,
        ge=1,
        description="Number of drafts decoded at once for identical requests that arrive together and share them; with "
        "1, each is decoded by itself.",
    )
    feedback_file: Path | None = draft_field(
        default=None,
        description="File to append what users did with drafts to, without any text: JSON lines for "
        "`superdraft lab tune --display --events`.",
    )
    host: str = network_field(default="127.0.0.1", description="Address to listen on.")
    port: int = network_field(default=8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    api_keys_file: Path | None = network_field(
        default=None,
        description="TOML file of API keys, written by `superdraft keys new`. The keys themselves can instead be in "
        "the environment variable SUPERDRAFT_API_KEYS.",
    )
    api_keys: SecretStr | None = network_field(  # never a flag: other users of the machine can read command lines
        default=None, description="API keys as name=key pairs, separated by commas."
    )
    allow_unauthenticated: bool = network_field(
        default=False, description="Allow other machines to connect although there are no API keys."
    )
    allowed_hosts: Several[str] = network_field(
        default=(),
        description="Host name, besides localhost and names without a dot, under which a server without keys may be "
        "addressed. Repeatable.",
    )
    cors_origins: Several[Annotated[str, AfterValidator(_origin)]] = network_field(
        default=(), description="Origin whose web pages may send requests from a browser (CORS). Repeatable."
    )
    max_connections: int = network_field(
        default=2000,
        ge=1,
        description="Maximum number of open connections; beyond it the one that has waited longest for a request is "
        "closed.",
    )
    proxy_networks: Several[Annotated[str, AfterValidator(_network)]] = network_field(
        default=(),
        description="Address or network of a proxy whose X-Forwarded-For names the client. Repeatable.",
    )
    receive_timeout_s: float = network_field(
        default=20.0, gt=0, description="Seconds for a request to arrive, and for a client to read its answer."
    )
    shutdown_grace_s: float = network_field(
        default=10.0, ge=0, le=3600, description="Seconds that running requests may take at shutdown."
    )
    target_latency_ms: int = limit_field(
        default=2000,
        ge=1,
        description="Time in which accepted requests should be answered, in milliseconds. Under load drafts "
        "end sooner; what could not be answered in time even so is refused.",
    )
    max_num_drafts: int = limit_field(default=32, ge=1, description="Maximum number of drafts per request.")
    max_request_tokens: int = limit_field(
        default=8192,
        ge=1,
        description="Maximum number of tokens that one request may decode: prompts x rows x max_tokens.",
    )
    prompt_too_long: Literal["error", "truncate_left"] = limit_field(
        default="error",
        description="What to do with a prompt longer than --max-model-len allows: refuse it, or drop its oldest "
        "tokens.",
    )
    max_body_bytes: ByteSize = limit_field(
        default=ByteSize(512 * 1024), ge=1, description="Maximum size of a request's body."
    )
    rate_limit: RateLimit | None = limit_field(
        default=None, description="Maximum request rate per caller, such as 600/minute. If not set, there is no limit."
    )
    max_concurrent: int | None = limit_field(
        default=None, ge=1, description="Maximum number of running requests per caller. If not set, there is no limit."
    )
    max_waiting: int = limit_field(
        default=64,
        ge=0,
        description="Maximum number of requests that wait for free slots; beyond it the oldest is refused.",
    )
    queue_timeout_ms: int = limit_field(
        default=25,
        ge=1,
        description="Maximum time that a request waits for free slots, in milliseconds; the newest is served first.",
    )
    ray_replicas: int | None = replica_field(
        default=None,
        ge=1,
        description="Serve with this many copies of the model behind one address, on Ray Serve. If not set, without "
        "Ray.",
    )
    ray_address: str | None = replica_field(
        default=None,
        min_length=1,
        description="With --ray-replicas, the address of a Ray cluster, or auto. If not set, one is started on this "
        "machine.",
    )
    ray_replica_cpus: float = replica_field(
        default=1.0, gt=0, description="With --ray-replicas, CPU cores reserved per replica, and threads of its model."
    )
    ray_replica_gpus: float = replica_field(
        default=0.0, ge=0, description="With --ray-replicas, GPUs reserved per replica."
    )
    log_level: Literal["debug", "info", "warning", "error"] = log_field(
        default="info",
        description="Least severe level that is logged. At info, a request is logged if it failed; at debug, always.",
    )
    log_format: Literal["console", "json"] = log_field(default="console", description="Format of log lines.")
    traces: Literal["off", "otlp"] = log_field(
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
            prompt_too_long=self.prompt_too_long,
        )
