"""`superdraft models`: list, fetch and find the language models that have a name."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table

from superdraft.decoding.loading.store import DEFAULT_MODEL, KNOWN_MODELS, ModelStore
from superdraft.decoding.memory import shown
from superdraft.server.errors import CommandError

if TYPE_CHECKING:
    from superdraft.decoding.loading.catalogue import ListedModel
    from superdraft.server.cli.machine import Machine

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
    "disk: estimated until a model is cached. step: time per decode step of one row on this machine (an estimate); "
    "- where there is no honest one. Gemma's licence must first be accepted on the hub."
)


@app.command("list")
def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List good models by task, with what they need and what this machine would give."""
    from superdraft.decoding.loading.catalogue import CATALOGUE
    from superdraft.server.cli.machine import look_at_machine
    from superdraft.server.settings_sources import load_settings

    settings = load_settings()
    machine, store = look_at_machine(settings), ModelStore(settings.home)
    rows = [_row(model, machine, settings.engine_config(), store) for model in CATALOGUE.values()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    console = Console()
    for task in dict.fromkeys(row["task"] for row in rows):
        console.print(_table(task, [row for row in rows if row["task"] == task]))
    console.print(_NOTES, highlight=False)


def _table(task: str, rows: list[dict[str, Any]]) -> Table:
    names = ("name", "kind", "weights", "disk", "memory", "step", "cached")
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
        on_disk, step_ms = row["size_bytes"], row["estimated_step_ms"]
        table.add_row(
            row["name"],
            "base" if row["is_base"] else "chat",
            f"{row['parameters'] / 1e6:.0f} M",
            f"~{shown(row['estimated_disk_bytes'])}" if on_disk is None else shown(on_disk),
            f"~{shown(row['estimated_memory_bytes'])}",
            "-" if step_ms is None else f"~{step_ms:.2g} ms",
            "yes" if row["cached"] else "no",
            row["licence"],
        )
    return table


def _row(model: "ListedModel", machine: "Machine", config: Any, store: ModelStore) -> dict[str, Any]:
    from superdraft.decoding.loading.hub import cached_bytes, cached_folder
    from superdraft.decoding.loading.model_size import needed_bytes

    if store.knows(model.name):
        folder, on_disk = store.cached(model.name), store.size_bytes(model.name)
    else:
        folder, on_disk = cached_folder(model.hub_id), cached_bytes(model.hub_id)
    known = KNOWN_MODELS.get(model.name)
    return {
        "name": model.name,
        "source": model.hub_id if known is None else known.source,
        "is_pinned": known is not None,
        "task": model.task,
        "is_base": model.is_base,
        "sees_suffix": model.sees_suffix,
        "licence": model.licence,
        "needs_accepted_licence": model.is_gated,
        "parameters": model.size.num_weights,
        "format": machine.dtype,
        "estimated_disk_bytes": model.stored_bytes,
        "estimated_memory_bytes": needed_bytes(model.size, machine.dtype, config),
        "estimated_step_ms": None if (step_ms := machine.step_ms(model.size)) is None else round(step_ms, 1),
        "cached": folder is not None,
        "size_bytes": on_disk,
        "path": None if folder is None else str(folder),
    }


@app.command()
def pull(name: Name = DEFAULT_MODEL) -> None:
    """Fetch a model, or check and repair its cached files by SHA-256 where they are pinned. Prints its folder."""
    if name in KNOWN_MODELS or not _is_listed(name):
        typer.echo(ModelStore().ensure(name, deep=True))
        return
    from superdraft.decoding.loading.loader import fetch

    fetch(name)
    path(name)


@app.command()
def path(name: Name = DEFAULT_MODEL) -> None:
    """Print the folder of a cached model. Exit code 2 if it is not cached."""
    if name in KNOWN_MODELS or not _is_listed(name):
        folder = ModelStore().cached(name)
    else:
        from superdraft.decoding.loading.catalogue import CATALOGUE
        from superdraft.decoding.loading.hub import cached_folder

        folder = cached_folder(CATALOGUE[name].hub_id)
    if folder is None:
        raise CommandError(f"model {name!r} is not cached. `superdraft models pull {name}` fetches it.")
    typer.echo(folder)


def _is_listed(name: str) -> bool:
    from superdraft.decoding.loading.catalogue import CATALOGUE

    return name in CATALOGUE
