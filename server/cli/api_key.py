"""The API key that a command sends to a server.

It has no environment variable: those that begin with `SUPERDRAFT_` are the server's settings, which refuses others.
"""

from pathlib import Path
from typing import Annotated

import typer

from superdraft.server.errors import CommandError

ApiKey = Annotated[str | None, typer.Option(help="For the server. Others see it in the process list.")]
ApiKeyFile = Annotated[Path | None, typer.Option(help="A file that holds the API key.")]


def read_key(api_key: str | None, file: Path | None) -> str | None:
    """The API key of two options, of which one may be given.

    Raises:
        CommandError: both are given, the file cannot be read, or the key is none.
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
