"""`superdraft try`: write in the terminal with suggestions."""

import asyncio
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from superdraft.client.wire import DEFAULT_URL, URL_VARIABLE
from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
from superdraft.server.cli.complete import shown
from superdraft.server.errors import CommandError


def try_it(
    text: Annotated[str, typer.Argument(help="Text to start with.")] = "",
    url: Annotated[
        str | None,
        typer.Option(help=f"URL of the server. If not set, that in {URL_VARIABLE}, otherwise {DEFAULT_URL}."),
    ] = None,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    num_drafts: Annotated[int, typer.Option("--num-drafts", "-k", min=1, help="Number of drafts.")] = 3,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="New tokens per draft.")] = 10,
    model: Annotated[str, typer.Option(help="Name of a model that the server knows.")] = "superdraft",
    report: Annotated[
        bool, typer.Option(help="Report to the server which drafts were shown, accepted and dismissed.")
    ] = True,
) -> None:
    """Write in the terminal, with drafts from a running server as you type."""
    from superdraft.client import AsyncSuperdraft, AsyncTypingSession, SessionOptions
    from superdraft.server.cli.writing.terminal import Terminal

    key = read_key(api_key, api_key_file)
    if not is_terminal():
        raise CommandError("try needs a terminal; `superdraft complete` works without one.")

    async def run() -> str:
        async with AsyncSuperdraft(url, key, max_retries=0) as client:
            await client.models()  # fails on a wrong address or key before the terminal changes

            def session(on_change: Callable[[], None]) -> AsyncTypingSession:
                return AsyncTypingSession(
                    client,
                    on_change,
                    session_options=SessionOptions(corrections=True),
                    num_drafts=num_drafts,
                    max_tokens=max_tokens,
                    report=report,
                    model=model,
                    single_line=True,
                )

            return await Terminal(session, text).run()

    written = asyncio.run(run())
    if written:
        typer.echo(shown(written))


def is_terminal() -> bool:
    """Whether standard input and output are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()
