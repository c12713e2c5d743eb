"""Options for the API key that a command sends to a server; without them, the client takes `SUPERDRAFT_API_KEY`."""

from pathlib import Path
from typing import Annotated

import typer

from superdraft.client.wire import Endpoint
from superdraft.server.errors import CommandError

ApiKey = Annotated[
    str | None, typer.Option(help="API key of the server. Other users of the machine can see it in the process list.")
]
ApiKeyFile = Annotated[Path | None, typer.Option(help="File that holds the API key.")]


def read_key(api_key: str | None, file: Path | None) -> str | None:
    """The API key of the two options; None if neither is given.

    Raises:
        CommandError: both are given, the file cannot be read, or the key that the client would take is not valid.
    """
    if api_key is not None and file is not None:
        raise CommandError("--api-key and --api-key-file are both given; leave one out.")
    if file is not None:
        try:
            api_key = file.read_text().strip()
        except (OSError, UnicodeError) as error:
            raise CommandError(f"--api-key-file {file} cannot be read: {error}.") from None
    if api_key == "":
        raise CommandError("the API key is empty.")
    try:
        Endpoint.of(None, api_key, timeout=1)
    except ValueError as error:
        raise CommandError(f"{error}.".replace("api_key", "the API key")) from None
    return api_key
