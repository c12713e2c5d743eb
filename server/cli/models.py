"""`superdraft models`: list, fetch and find the language models that have a name."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Column, Table

from superdraft.decoding.loading.store import DEFAULT_MODEL, KNOWN_MODELS, ModelStore
from superdraft.server.errors import CommandError

app = typer.Typer(
    help="The language models that have a name: fetched once, then kept in a cache folder.",
    no_args_is_help=True,
    add_completion=False,
)

Name = Annotated[str, typer.Argument(help="Name of a model in `superdraft models list`.")]


@app.command("list")
def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models, whether they are cached, and their size on disk."""
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
    """Fetch a model, or check and repair its cached files by SHA-256. Prints its folder."""
    typer.echo(ModelStore().ensure(name, deep=True))


@app.command()
def path(name: Name = DEFAULT_MODEL) -> None:
    """Print the folder of a cached model. Exit code 2 if it is not cached."""
    folder = ModelStore().cached(name)
    if folder is None:
        raise CommandError(f"model {name!r} is not cached. `superdraft models pull {name}` fetches it.")
    typer.echo(folder)
