"""Options for the API key that a command sends to a server; without them, the client takes `SUPERDRAFT_API_KEY`."""

from pathlib import Path
from typing import Annotated

import typer

from superdraft.server.errors import CommandError

ApiKey = Annotated[
    str | None, typer.Option(help="API key of the server. Other users of the machine can see it in the process list.")
]
ApiKeyFile = Annotated[Path | None, typer.Option(help="File that holds the API key.")]


def read_key(api_key: str | None, file: Path | None) -> str | None:
    """The API key of the two options; None if neither is given.

    Raises:
        CommandError: both are given, the file cannot be read, or the key has invalid characters.
    """
    if api_key is not None and file is not None:
        raise CommandError("--api-key and --api-key-file are both given; leave one out.")
    if file is not None:
        try:
            api_key = file.read_text().strip()
        except (OSError, UnicodeError) as error:
            raise CommandError(f"--api-key-file {file} cannot be read: {error}.") from None
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key):
        raise CommandError("the API key must consist of printable ASCII characters.")
    return api_key
