"""Settings of the server. The only reader of the environment: every setting is also `SUPERDRAFT_<NAME>`."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ByteSize, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from superdraft.decoding.config import EngineConfig
from superdraft.server.errors import SettingsError

ENV_PREFIX = "SUPERDRAFT_"


class Settings(BaseSettings):
    """Settings of the server. Arguments win over the environment, the environment over the defaults."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 picks a free port")
    home: Path | None = Field(default=None, description="cache folder of models; None: the user's cache folder")
    model: str = Field(default="smollm2-135m", min_length=1)
    served_model_name: str | None = Field(default=None, min_length=1, description="None: the model's own name")
    ngram_model: str = Field(default="auto", min_length=1, description='"auto", "none", a name or a path')
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    max_model_len: int = Field(default=2048, ge=1)
    kv_memory: ByteSize = Field(default=ByteSize(2 * 1024**3), ge=1, description="of the KV cache, all taken at start")
    num_slots: int | None = Field(default=None, ge=1, description="None: as many as fit in kv_memory, at most 64")
    num_threads: int | None = Field(default=None, ge=1, description="on a CPU; None: all cores but one, for the network")
    max_prefill_tokens: int = Field(default=256, ge=1, description="prompt tokens between two decode steps")
    max_num_drafts: int = Field(default=32, ge=1)
    max_batch_prompts: int = Field(default=32, ge=1, description="most prompts in one /v1/completions request")
    prompt_too_long: Literal["error", "truncate_left"] = "error"
    max_body_bytes: int = Field(default=1024 * 1024, ge=1)
    max_timeout_ms: int = Field(default=60_000, ge=1, description="largest timeout_ms of a request")
    token_healing: bool = Field(default=True, description="for text prompts of requests that don't say")
    default_alpha: float | None = Field(default=None, ge=0, le=1, description="None: tuned for the n-gram model")
    default_tau: float | None = Field(default=None, ge=0.001, le=100, description="None: tuned for the n-gram model")
    shutdown_grace_s: float = Field(default=10.0, ge=0, le=3600, description="for running requests at shutdown")
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
            prompt_too_long=self.prompt_too_long,
        )


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """Read the environment, then lay the flags that were given over it.

    Args:
        flags: values from the command line by setting name; None entries count as not given.

    Raises:
        SettingsError: a value is out of range, or a `SUPERDRAFT_` variable names no setting.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    _refuse_unknown_variables(os.environ)
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError("; ".join(_describe(item, given) for item in error.errors())) from None


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    known = [ENV_PREFIX + name.upper() for name in Settings.model_fields]
    for variable in sorted(environment):
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in known:
            close = difflib.get_close_matches(variable.upper(), known, n=1, cutoff=0.0)
            raise SettingsError(f"The environment variable {variable} names no setting; did you mean {close[0]}?")


def _describe(item: Mapping[str, Any], flags: Mapping[str, Any]) -> str:
    name = str(item["loc"][0]) if item["loc"] else "settings"
    source = f"--{name.replace('_', '-')}" if name in flags else ENV_PREFIX + name.upper()
    return f"{source} {item['msg'].removeprefix('Input ')}, got {item['input']!r}"
