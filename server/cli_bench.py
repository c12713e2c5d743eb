"""`superdraft bench`: what a step costs."""

from typing import Annotated

import typer

app = typer.Typer(help="Measure the engine.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def group() -> None:
    """Measure the engine."""


@app.command()
def step(
    model: Annotated[str, typer.Option(help="As in serve.")] = "smollm2-135m",
    num_drafts: Annotated[list[int] | None, typer.Option("--num-drafts", "-k", help="Repeatable.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of each kind.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Compare a superposed step with a greedy one, n-gram model included."""
    from superdraft.benchmarks.step import main

    main(model=model, num_drafts=num_drafts or [3, 8], steps=steps, as_json=as_json)
