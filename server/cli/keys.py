"""`superdraft keys`: make API keys."""

from pathlib import Path
from typing import Annotated

import typer

from superdraft.server.errors import CommandError

app = typer.Typer(help="Make API keys.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def group() -> None:
    """Make API keys."""  # a callback makes `new` a command of its own


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Name of the key's holder, for logs and limits.")],
    scopes: Annotated[
        str, typer.Option(help="What the key allows: complete, metrics, admin, separated by commas.")
    ] = "complete",
    api_keys_file: Annotated[
        Path | None, typer.Option(help="TOML file to append to. If not set, the setting api_keys_file.")
    ] = None,
) -> None:
    """Print a new key once and append its hash to the file of keys. A running server accepts it within a second."""
    from superdraft.server.edge.api_keys import ALL_SCOPES, add_key
    from superdraft.server.settings_sources import load_settings

    file = api_keys_file or load_settings().api_keys_file
    if file is None:
        raise CommandError("name the file with --api-keys-file or in SUPERDRAFT_API_KEYS_FILE.")
    wanted = [scope.strip() for scope in scopes.split(",")]
    chosen = [scope for scope in ALL_SCOPES if scope in wanted]
    if not chosen or set(wanted) - set(chosen):
        raise CommandError(f"--scopes must be some of {', '.join(ALL_SCOPES)}, separated by commas, got {scopes!r}.")
    key = add_key(file, name, chosen)
    typer.echo(key)
    typer.echo(f"Its hash is in {file} under the name {name}. The key itself is not shown again.", err=True)
