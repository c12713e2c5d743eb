"""`superdraft doctor`."""

from typing import Annotated

import typer


def doctor(
    model: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    ngram_model: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    kv_memory: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    host: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    port: Annotated[int | None, typer.Option(help="As in serve.")] = None,
) -> None:
    """Check the installation: each line is ok, or says what to do. Exit code 1 if something is wrong."""
    flags = dict(locals())
    from rich.console import Console

    from superdraft.server.cli.doctor import run_checks
    from superdraft.server.observe.log_config import configure_logging
    from superdraft.server.settings import load_settings

    configure_logging("error", "console")
    console, healthy = Console(highlight=False, soft_wrap=True), True
    for name, finding in run_checks(load_settings(flags)):
        mark = "[green]ok  [/green]" if finding.ok else "[red]FAIL[/red]"
        console.print(f"{mark} {name:<13}", end=" ")
        console.print(finding.detail, markup=False)
        healthy = healthy and finding.ok
    if not healthy:
        raise typer.Exit(1)
