"""`superdraft keys`: make API keys."""

from pathlib import Path
from typing import Annotated

import typer

from superdraft.server.errors import CommandError

app = typer.Typer(help="Make API keys.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def group() -> None:
    """Make API keys."""  # a callback makes `new` a command of its own


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Whose it is; in logs and for limits.")],
    scopes: Annotated[str, typer.Option(help="complete, metrics, admin, with commas between.")] = "complete",
    api_keys_file: Annotated[
        Path | None, typer.Option(help="TOML file to append to.  [default: that of the settings]")
    ] = None,
) -> None:
    """Print a new key, once, and append its hash to the file of keys. A running server takes it within a second."""
    from superdraft.server.edge.api_keys import ALL_SCOPES, add_key
    from superdraft.server.settings import load_settings

    file = api_keys_file or load_settings().api_keys_file
    if file is None:
        raise CommandError("name the file in --api-keys-file, or in SUPERDRAFT_API_KEYS_FILE.")
    wanted = [scope.strip() for scope in scopes.split(",")]
    chosen = [scope for scope in ALL_SCOPES if scope in wanted]
    if not chosen or set(wanted) - set(chosen):
        raise CommandError(f"--scopes takes {', '.join(ALL_SCOPES)} with commas between, got {scopes!r}.")
    key = add_key(file, name, chosen)
    typer.echo(key)
    typer.echo(f"Its hash is in {file} under the name {name}. The key itself is shown this once.", err=True)
