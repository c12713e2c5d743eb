"""`superdraft models`: list, fetch and find the language models that have a name."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table

from superdraft.decoding.loading.catalogue import DEFAULT_MODEL, KNOWN_MODELS
from superdraft.decoding.memory import shown
from superdraft.server.errors import CommandError

if TYPE_CHECKING:
    from superdraft.decoding.config import EngineConfig
    from superdraft.decoding.loading.source import Source
    from superdraft.server.settings import Settings

app = typer.Typer(
    help="The language models that have a name: fetched once, then kept in a cache folder.",
    no_args_is_help=True,
    add_completion=False,
)

Name = Annotated[str, typer.Argument(help="Name of a model in `superdraft models list`.")]

_TITLES = {
    "prose": "Prose. Only the text before the cursor counts.",
    "code": "Code. These also see the text after the cursor (fill-in-the-middle).",
}
_NOTES = (
    "memory: most that a server needs with the settings of this environment, the KV cache full (an estimate). "
    "disk: estimated until a model is cached. Gemma's licence must first be accepted on the hub."
)


@app.command("list")
def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List good models by task, with the memory and disk space that they need."""
    from superdraft.decoding.loading.catalogue import CATALOGUE
    from superdraft.decoding.loading.source import resolve
    from superdraft.server.settings_sources import load_settings

    settings = load_settings()
    dtype, config = torch_dtype(settings), settings.engine_config()
    rows = [_row(resolve(name, settings.home), dtype, config) for name in CATALOGUE]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    console = Console()
    for task in dict.fromkeys(row["task"] for row in rows):
        console.print(_table(task, [row for row in rows if row["task"] == task]))
    console.print(_NOTES, highlight=False)


def torch_dtype(settings: "Settings") -> str:
    """The weight format that torch would use."""
    import torch

    from superdraft.decoding.model.weight_formats import choose_weight_format

    device = torch.device("cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")
    return choose_weight_format(settings.dtype, device).name


def _table(task: str, rows: list[dict[str, Any]]) -> Table:
    names = ("name", "kind", "weights", "disk", "memory", "cached")
    table = Table(
        *(Column(name, no_wrap=True) for name in names),
        "licence",
        title=_TITLES[task],
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for row in rows:
        on_disk = row["size_bytes"]
        table.add_row(
            row["name"],
            "base" if row["is_base"] else "chat",
            f"{row['parameters'] / 1e6:.0f} M",
            f"~{shown(row['estimated_disk_bytes'])}" if on_disk is None else shown(on_disk),
            f"~{shown(row['estimated_memory_bytes'])}",
            "yes" if row["cached"] else "no",
            row["licence"],
        )
    return table


def _row(source: "Source", dtype: str, config: "EngineConfig") -> dict[str, Any]:
    from superdraft.decoding.loading.model_size import needed_bytes

    model, cached = source.listed, source.cached
    assert model is not None, "it is not in the catalogue"
    return {
        "name": model.name,
        "source": KNOWN_MODELS[model.name].source if source.is_known else model.hub_id,
        "is_pinned": source.is_known,
        "task": model.task,
        "is_base": model.is_base,
        "sees_suffix": model.sees_suffix,
        "licence": model.licence,
        "needs_accepted_licence": model.is_gated,
        "parameters": model.size.num_weights,
        "format": dtype,
        "estimated_disk_bytes": model.stored_bytes,
        "estimated_memory_bytes": needed_bytes(model.size, dtype, config, is_gguf=source.is_known),
        "cached": cached is not None,
        "size_bytes": source.cached_bytes,
        "path": None if cached is None else str(cached),
    }


@app.command()
def pull(name: Name = DEFAULT_MODEL) -> None:
    """Fetch a model, or check and repair its cached files by SHA-256 where they are pinned. Prints its folder."""
    from superdraft.decoding.loading.loader import fetch

    _check_name(name)
    typer.echo(fetch(name))


@app.command()
def path(name: Name = DEFAULT_MODEL) -> None:
    """Print the folder of a cached model. Exit code 2 if it is not cached."""
    from superdraft.decoding.loading.source import resolve

    _check_name(name)
    folder = resolve(name).cached
    if folder is None:
        raise CommandError(f"model {name!r} is not cached. `superdraft models pull {name}` fetches it.")
    typer.echo(folder)


def _check_name(name: str) -> None:
    from superdraft.decoding.loading.catalogue import CATALOGUE

    if name not in CATALOGUE:
        raise CommandError(f"there is no known model {name!r}. Known: {', '.join(CATALOGUE)}.")
