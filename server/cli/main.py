"""The command line.

Commands import what they need when they run, so that `--help` and `--version` are quick and `complete --url` needs only
the client's packages.
"""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from superdraft.client.errors import ClientError
from superdraft.decoding.errors import SuperdraftError
from superdraft.ngram_models.errors import NgramModelError
from superdraft.server.cli import lab
from superdraft.server.cli.complete import complete
from superdraft.server.cli.lazy import PASS_ON, add_commands
from superdraft.server.cli.standard_error import make_stderr_harmless
from superdraft.server.cli.writing.try_drafts import try_it
from superdraft.server.errors import CommandError

EXPECTED_ERROR_CODE = 2
_EXTRAS = {
    "matplotlib": "evaluation",
    "prompt_toolkit": "try",
    "pygls": "lsp",
    "lsprotocol": "lsp",
    "ray": "ray",
    "opentelemetry": "traces",
}

app = typer.Typer(
    help="Autocomplete with k drafts from one pass of a language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
add_commands(app, {"serve": ("superdraft.server.cli.serve", "Serve drafts over HTTP.")})
app.command()(complete)
app.command("try")(try_it)
add_commands(app, {"lsp": ("superdraft.server.cli.writing.lsp", "Make suggestions in an editor: a language server.")})
add_commands(
    app,
    {
        "doctor": ("superdraft.server.cli.doctor", "Check the installation."),
        "models": ("superdraft.server.cli.models", "List, fetch and find language models."),
        "ngram": ("superdraft.server.cli.ngrams.commands", "Build, list, inspect and verify n-gram models."),
        "config": ("superdraft.server.cli.config", "Show the server's configuration."),
        "keys": ("superdraft.server.cli.keys", "Make API keys."),
    },
)
app.add_typer(lab.app, name="lab")
for name in lab.MOVED:
    app.command(name, hidden=True, context_settings=PASS_ON)(lab.moved)


@app.callback(invoke_without_command=True)
def options(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Autocomplete with k drafts from one pass of a language model."""
    if show_version:
        typer.echo(f"superdraft {version('superdraft')}")
        raise typer.Exit


def main() -> None:
    """Entry point: expected errors become one line on stderr and exit code 2."""
    make_stderr_harmless()
    try:
        app(prog_name="superdraft")
    except (CommandError, SuperdraftError, NgramModelError, ClientError) as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("superdraft"):
            raise
        extra = _EXTRAS.get(error.name.partition(".")[0], "server")
        _fail(
            f"this command needs more packages ({error.name} is missing): pip install '.[{extra}]' in the folder of "
            "Superdraft's sources"
        )


def _fail(message: str) -> None:
    sys.stderr.write(f"superdraft: {' '.join(message.split())}\n")
    sys.exit(EXPECTED_ERROR_CODE)
