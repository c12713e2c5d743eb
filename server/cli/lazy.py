"""Commands in modules that are imported when the command runs, so that `--help` and `--version` are quick."""

import importlib
from collections.abc import Callable, Mapping

import typer

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def add_commands(app: typer.Typer, commands: Mapping[str, tuple[str, str]]) -> None:
    """Add commands of other modules to an app.

    Args:
        app: the app.
        commands: for each command the name of its module, which has a typer app called `app` or a function called
            `main`, and the line that describes it in the list of commands.
    """
    for name, (module, summary) in commands.items():
        app.command(name, help=summary, context_settings=PASS_ON)(_runner(module))


def _runner(module: str) -> Callable[[typer.Context], None]:
    def run(ctx: typer.Context) -> None:
        found = importlib.import_module(module)
        app = getattr(found, "app", None)
        if app is None:
            app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            app.command()(found.main)
        typer.main.get_command(app).main(args=ctx.args, prog_name=ctx.info_name, parent=ctx.parent)

    return run
