"""`superdraft models`: the models known by name and where they are."""

import json
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Column, Table

from superdraft.decoding.errors import ModelLoadError
from superdraft.decoding.loading.store import DEFAULT_MODEL, KNOWN_MODELS, ModelStore

app = typer.Typer(help="The models known by name: fetched once, kept in a cache folder.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="One of the names that `superdraft models list` shows.")]


@app.command("list")
def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the known models, whether they are cached, and their size on disk."""
    store = ModelStore()
    rows: list[dict[str, Any]] = []
    for name in store.names():
        folder = store.cached(name)
        rows.append(
            {
                "name": name,
                "source": KNOWN_MODELS[name].source,
                "licence": KNOWN_MODELS[name].licence,
                "cached": folder is not None,
                "size_bytes": store.size_bytes(name),
                "path": None if folder is None else str(folder),
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("name", "cached", "size", "licence", Column("path", overflow="fold"))
    for row in rows:
        size = "-" if row["size_bytes"] is None else decimal(row["size_bytes"])
        table.add_row(row["name"], "yes" if row["cached"] else "no", size, row["licence"], row["path"] or "-")
    Console().print(table)


@app.command()
def pull(name: Name = DEFAULT_MODEL) -> None:
    """Fetch a model if it is not cached; check every file's sha256 and repair it if it is. Prints its folder."""
    try:
        folder = ModelStore().ensure(name, deep=True)
    except ModelLoadError as error:
        _fail(error)
    typer.echo(folder)


@app.command()
def path(name: Name = DEFAULT_MODEL) -> None:
    """Print the folder of a cached model; exit code 2 if it is not cached."""
    try:
        folder = ModelStore().cached(name)
    except ModelLoadError as error:
        _fail(error)
    if folder is None:
        _fail(f"model {name!r} is not cached. `superdraft models pull {name}` fetches it.")
    typer.echo(folder)


def _fail(reason: object) -> NoReturn:
    typer.echo(f"superdraft: {reason}", err=True)
    raise typer.Exit(2)
