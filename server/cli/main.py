"""The command line.

Commands import what they need when they run, so that `--help` and `--version` are quick and `complete --url` needs no
more than the client's packages.
"""

import importlib
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from superdraft.client.errors import ClientError
from superdraft.decoding.errors import SuperdraftError
from superdraft.ngram_models.errors import NgramModelError
from superdraft.server.cli.complete import complete
from superdraft.server.cli.doctor_command import doctor
from superdraft.server.cli.serve import serve
from superdraft.server.cli.try_drafts import try_it
from superdraft.server.errors import CommandError

EXPECTED_ERROR_CODE = 2
_EXTRAS = {"matplotlib": "evaluation", "prompt_toolkit": "try", "ray": "ray"}
_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app = typer.Typer(
    help="Autocomplete with k drafts from one pass of a language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(complete)
app.command()(doctor)
app.command("try")(try_it)


@app.callback(invoke_without_command=True)
def options(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Autocomplete with k drafts from one pass of a language model."""
    if show_version:
        typer.echo(f"superdraft {version('superdraft')}")
        raise typer.Exit


@app.command(context_settings=_FORWARD)
def models(ctx: typer.Context) -> None:
    """List, fetch and find language models."""
    _forward("superdraft.server.cli.models", ctx)


@app.command(context_settings=_FORWARD)
def ngram(ctx: typer.Context) -> None:
    """Build n-gram models and list them."""
    _forward("superdraft.server.cli.ngram", ctx)


@app.command(context_settings=_FORWARD)
def config(ctx: typer.Context) -> None:
    """Show the server's configuration."""
    _forward("superdraft.server.cli.config", ctx)


@app.command(context_settings=_FORWARD)
def keys(ctx: typer.Context) -> None:
    """Make API keys."""
    _forward("superdraft.server.cli.keys", ctx)


@app.command(context_settings=_FORWARD)
def bench(ctx: typer.Context) -> None:
    """Measure the engine."""
    _forward("superdraft.server.cli.bench", ctx)


@app.command("eval", context_settings=_FORWARD)
def evaluate(ctx: typer.Context) -> None:
    """Measure how good the drafts are."""
    _forward("superdraft.server.cli.evaluate", ctx)


@app.command(context_settings=_FORWARD)
def tune(ctx: typer.Context) -> None:
    """Find the best settings for a model and an n-gram model."""
    _forward("superdraft.server.cli.tune", ctx)


def main() -> None:
    """Entry point: expected errors become one line on stderr and exit code 2."""
    try:
        app()
    except (CommandError, SuperdraftError, NgramModelError, ClientError) as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("superdraft"):
            raise
        extra = _EXTRAS.get(error.name.partition(".")[0], "server")
        _fail(f"this command needs more packages ({error.name} is missing): pip install 'superdraft[{extra}]'")


def _forward(module: str, ctx: typer.Context) -> None:
    """Run another module's commands with the arguments that are left. Not mounted: importing them is slow."""
    sub_app: typer.Typer = importlib.import_module(module).app
    typer.main.get_command(sub_app).main(args=ctx.args, prog_name=ctx.command_path)


def _fail(message: str) -> None:
    sys.stderr.write(f"superdraft: {' '.join(message.split())}\n")
    sys.exit(EXPECTED_ERROR_CODE)
