"""Command-line options made from the fields of `Settings`."""

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import ByteSize
from pydantic.fields import FieldInfo
from typer.models import OptionInfo

from superdraft.server.settings import Settings, shown_bytes

_PANELS = {
    "Model": "model home served_model_name runner gpu_layers device dtype trust_remote_code max_model_len kv_memory "
    "memory_check num_slots num_threads max_prefill_tokens speculate prefix_isolation",
    "Drafts": "default_strategy default_selection default_max_branches default_min_probability min_probability_shown "
    "token_healing document_start special_tokens fim editor_max_tokens editor_min_probability_shown fan_out "
    "fan_out_drafts feedback feedback_file",
    "N-grams": "ngram_model max_ngram_models default_alpha default_tau",
    "Network": "host port api_keys_file allow_unauthenticated allowed_hosts cors_origins max_connections "
    "max_connections_per_address proxy_networks receive_timeout_s shutdown_grace_s",
    "Limits": "target_latency_ms max_num_drafts max_batch_prompts max_request_tokens prompt_too_long max_body_bytes "
    "max_timeout_ms rate_limit max_concurrent max_waiting queue_timeout_ms",
    "Replicas": "ray ray_address ray_min_replicas ray_max_replicas ray_replica_cpus ray_replica_gpus "
    "ray_target_requests ray_upscale_delay_s ray_downscale_delay_s",
    "Logs and configuration": "log_level log_format traces",
}
"""The settings in the order and the panels of the help text."""
_PANEL_OF = {name: panel for panel, names in _PANELS.items() for name in names.split()}

_CONFIG = Annotated[
    Path | None,
    typer.Option(
        help="TOML file of settings. If not set, the value of SUPERDRAFT_CONFIG is used.",
        rich_help_panel="Logs and configuration",
    ),
]

Command = TypeVar("Command", bound=Callable[..., None])


def takes_settings(*names: str) -> Callable[[Command], Command]:
    """Give a command that takes `**flags` an option for each of these settings.

    A flag is None where its option is not given, so that `load_settings` looks for the value elsewhere.

    Args:
        names: of settings; without any, the command takes all settings but the secret ones, and `--config`.
    """
    fields = {name: Settings.model_fields[name] for name in names or _PANEL_OF}
    annotations: dict[str, Any] = {}
    for name, field in fields.items():
        option = setting(name)
        option.rich_help_panel = None if names else _PANEL_OF[name]
        default = _default(field)
        if default is not None:  # typer puts parentheses round a default that is not the parameter's own
            option.help = rf"{option.help}  \[default: {default}]"
        annotations[name] = Annotated[_type(field), option]
    if not names:
        annotations["config"] = _CONFIG
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in annotations.items()
    ]

    def decorate(command: Command) -> Command:
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
        return command

    return decorate


def setting(name: str) -> OptionInfo:
    """The option of a setting: its name, help text and choices are those of the field.

    Other commands annotate a parameter with it: `model: Annotated[str, setting("model")] = "smollm2-135m"`.
    """
    field = Settings.model_fields[name]
    choices = _choices(field)
    option: OptionInfo = typer.Option(
        *_flags(name, field),
        help=field.description,
        metavar="|".join(choices) if choices else None,
    )
    return option


def _plain(annotation: Any) -> Any:
    """The type inside `X | None` and `Annotated[X, ...]`."""
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not types.NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _type(field: FieldInfo) -> Any:
    """The type that typer parses; all finer checks are those of `Settings`."""
    kind = _plain(field.annotation)
    if get_origin(kind) is tuple:
        return list[str] | None
    return (kind if kind in (bool, int, float, Path) else str) | None


def _choices(field: FieldInfo) -> tuple[str, ...]:
    kind = _plain(field.annotation)
    return get_args(kind) if get_origin(kind) is Literal else ()


def _flags(name: str, field: FieldInfo) -> tuple[str, ...]:
    """`--flag`; for switches that are on also `--no-flag`, for lists also the name of one value."""
    flag = f"--{name.replace('_', '-')}"
    if field.annotation is bool:
        return (f"{flag}/--no-{flag.removeprefix('--')}" if field.default else flag,)
    return (flag.removesuffix("s"), flag) if get_origin(field.annotation) is tuple else (flag,)


def _default(field: FieldInfo) -> str | None:
    """The default for the help text; None where the description tells it."""
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    if isinstance(field.default, ByteSize):
        return shown_bytes(field.default)
    if field.default is None:
        return None
    if isinstance(field.default, float):
        return f"{field.default:g}"
    return "none" if field.default == () else str(field.default)
