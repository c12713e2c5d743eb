"""`superdraft config show`: the effective settings of `superdraft serve` and their origins."""

import json
from typing import Any

import typer
from pydantic import ByteSize

from superdraft.server.cli.settings_options import takes_settings
from superdraft.server.settings import Settings
from superdraft.server.settings_sources import is_secret, settings_and_origins, shown_bytes

app = typer.Typer(help="Show the server's configuration.", no_args_is_help=True, add_completion=False)


@app.callback()
def options() -> None:
    """Show the server's configuration."""  # a callback makes `show` a command of its own


@app.command()
@takes_settings()
def show(**flags: Any) -> None:
    """Print the effective settings as a TOML file. Takes the options of `superdraft serve`.

    Each value's origin is a comment. Settings without a value and secrets are comments, too.
    """
    found, origins = settings_and_origins(flags)
    lines = {}
    for name, value in found.model_dump(mode="json").items():
        if isinstance(getattr(found, name), ByteSize):
            lines[name] = f'{name} = "{shown_bytes(value)}"'
        elif value is None:
            lines[name] = f"# {name} is not set"
        elif is_secret(Settings.model_fields[name].annotation):
            lines[name] = f"# {name} is set, and secret"
        else:
            lines[name] = f"{name} = {json.dumps(value, ensure_ascii=False)}"
    width = max(map(len, lines.values()))
    for name, line in lines.items():
        origin = origins.get(name)
        typer.echo(f"{line:<{width}}  # {' '.join(origin) if origin is not None else 'default'}")
