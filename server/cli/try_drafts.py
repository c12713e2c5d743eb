"""`superdraft try`: write in the terminal with suggestions."""

import asyncio
import sys
from typing import Annotated

import typer

from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
from superdraft.server.cli.complete import shown
from superdraft.server.errors import CommandError

DEFAULT_URL = "http://127.0.0.1:8000"


def try_it(
    text: Annotated[str, typer.Argument(help="Text to begin with.")] = "",
    url: Annotated[str, typer.Option(help="Of the server.")] = DEFAULT_URL,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    num_drafts: Annotated[int, typer.Option("--num-drafts", "-k", min=1, help="Drafts.")] = 3,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="New tokens of each draft.")] = 10,
    model: Annotated[str, typer.Option(help="A name that the server knows.")] = "superdraft",
    report: Annotated[bool, typer.Option(help="Tell the server what was shown, accepted and dismissed.")] = True,
) -> None:
    """Write in the terminal, with drafts of a running server as you type."""
    from superdraft.client import AsyncSuperdraft
    from superdraft.server.cli.terminal import run_terminal

    key = read_key(api_key, api_key_file)
    if not is_terminal():
        raise CommandError("try needs a terminal; `superdraft complete` works without one.")

    async def run() -> str:
        async with AsyncSuperdraft(url, key, max_retries=0) as client:
            await client.models()  # what is wrong with the address or the key is said before the screen is taken
            return await run_terminal(
                client, text, num_drafts=num_drafts, max_tokens=max_tokens, report=report, model=model, single_line=True
            )

    written = asyncio.run(run())
    if written:
        typer.echo(shown(written))


def is_terminal() -> bool:
    """Whether somebody can see what is written, and type."""
    return sys.stdin.isatty() and sys.stdout.isatty()
