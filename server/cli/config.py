"""`superdraft config show`: the settings that `superdraft serve` would have, and where each comes from."""

import functools
import json
from typing import Any

import typer

from superdraft.server.cli.serve import serve

app = typer.Typer(help="Show the server's configuration.", no_args_is_help=True)


@app.callback()
def options() -> None:
    """Show the server's configuration."""  # a callback makes `show` a command of its own


@app.command("show", help="Print the effective settings as a TOML file. Takes the options of `superdraft serve`.")
@functools.wraps(serve)  # typer asks for the signature
def show(**flags: Any) -> None:
    """Print every setting, with its origin as a comment. What is not set, or is secret, is a comment, too."""
    from superdraft.server.settings import Settings, is_secret, settings_and_origins

    settings, origins = settings_and_origins(flags)
    lines = {}
    for name, value in settings.model_dump(mode="json").items():
        if value is None:
            lines[name] = f"# {name} is not set"
        elif is_secret(Settings.model_fields[name].annotation):
            lines[name] = f"# {name} is set, and secret"
        else:
            lines[name] = f"{name} = {json.dumps(value, ensure_ascii=False)}"
    width = max(map(len, lines.values()))
    for name, line in lines.items():
        origin = origins.get(name)
        typer.echo(f"{line:<{width}}  # {' '.join(origin) if origin is not None else 'default'}")
