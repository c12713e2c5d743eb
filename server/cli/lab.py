"""`superdraft lab`: benchmarks, evaluations and tuning, for those who change the server or choose a model for it."""

import typer

from superdraft.server.cli import bench, evaluate
from superdraft.server.cli.lazy import add_commands
from superdraft.server.errors import CommandError

MOVED = ("bench", "eval", "tune")

app = typer.Typer(help="Measure speed and quality, and tune settings.", no_args_is_help=True)
app.add_typer(bench.app, name="bench")
app.add_typer(evaluate.app, name="eval")
add_commands(
    app, {"tune": ("superdraft.evaluation.runs.tuning", "Find the best settings for a model and an n-gram model.")}
)


def moved(ctx: typer.Context) -> None:
    """Tell where a command is that was once beside `serve`."""
    raise CommandError(f"`superdraft {ctx.info_name}` is now `superdraft lab {ctx.info_name}`.")
