"""`superdraft lsp`: suggestions in editors, through the language server protocol."""

import asyncio
import concurrent.futures
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, TypeVar

import httpx
import typer

from superdraft.client.errors import ClientError
from superdraft.decoding.errors import SuperdraftError
from superdraft.ngram_models.errors import NgramModelError
from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
from superdraft.server.errors import CommandError

T = TypeVar("T")


def main(
    url: Annotated[
        str | None, typer.Option(help="URL of a server. If not set, the model is loaded in this process.")
    ] = None,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    model: Annotated[
        str | None, typer.Option(help="Without --url: a model's name, a folder, a .gguf file or a hub id.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Without --url: TOML file of settings, as of serve.")] = None,
) -> None:
    """Make suggestions in an editor, which starts this command and talks to it over standard input and output.

    The editor may send options; see docs/editors.md. Without --url, settings of serve are read from the environment.
    """
    from superdraft.server.language_server.server import make_server, run

    key = read_key(api_key, api_key_file)
    if url is not None and (model is not None or config is not None):
        raise CommandError("--model and --config are for a model in this process; leave them out, or --url.")

    @asynccontextmanager
    async def open_engine() -> AsyncIterator[httpx.AsyncBaseTransport]:
        try:
            from superdraft.server.cli.in_process import load, running

            app = await _in_thread(lambda: load({"model": model, "config": config}))
        except (CommandError, SuperdraftError, NgramModelError) as error:
            raise ClientError(str(error)) from None
        except ModuleNotFoundError as error:
            raise ClientError(
                f"A model in this process needs more packages ({error.name} is missing): pip install '.[server]' in "
                "the folder of Superdraft's sources, or give the URL of a server."
            ) from None
        async with running(app) as transport:
            yield transport

    run(make_server(url, key, open_engine), sys.stdin.buffer, _take_stdout())


async def _in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread that does not keep the process alive when the editor leaves."""
    result: concurrent.futures.Future[T] = concurrent.futures.Future()
    result.set_running_or_notify_cancel()  # from now on, an editor that leaves cannot cancel it

    def run() -> None:
        try:
            result.set_result(work())
        except Exception as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(result)


def _take_stdout() -> BinaryIO:
    """Standard output for messages alone: what libraries print goes to standard error."""
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return messages
