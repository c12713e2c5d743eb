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

from superdraft.server.settings import Settings
from superdraft.server.settings_sources import is_secret, shown_bytes

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
    every = Settings.model_fields
    fields = {name: every[name] for name in names or every if not is_secret(every[name].annotation)}
    annotations: dict[str, Any] = {}
    for name, field in fields.items():
        option = setting(name)
        option.rich_help_panel = None if names else _panel(field)
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


def _panel(field: FieldInfo) -> str:
    """The panel of the help text in which a setting stands."""
    assert isinstance(field.json_schema_extra, dict)
    return str(field.json_schema_extra["panel"])


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
    """The default for the help text; None where the description has it."""
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    if isinstance(field.default, ByteSize):
        return shown_bytes(field.default)
    if field.default is None:
        return None
    if isinstance(field.default, float):
        return f"{field.default:g}"
    return "none" if field.default == () else str(field.default)
