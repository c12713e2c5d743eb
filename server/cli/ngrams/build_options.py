"""Options and error handling of the commands that build n-gram models."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from superdraft.server.errors import CommandError

Order = Annotated[int, typer.Option(help="Length of the longest n-gram, in tokens (2 to 6).")]
Prune = Annotated[str, typer.Option(help="Leave out n-grams seen at most this often; one number per order.")]
QuantizeBits = Annotated[int, typer.Option(help="Bits per probability (1 to 25); 0: full floats for all.")]
BackoffQuantizeBits = Annotated[int, typer.Option(help="Bits per back-off weight; 0: as --quantize-bits.")]
Memory = Annotated[str, typer.Option(help="Memory for sorting, such as 4G, or 50% of the machine's.")]
Tools = Annotated[Path | None, typer.Option(help="Folder of KenLM's lmplz and build_binary.")]
Licence = Annotated[str, typer.Option(help="Licence of the n-gram model, for its manifest.")]

DEFAULT_PRUNE = "0 0 1 1 2 2"


@contextmanager
def command_errors() -> Iterator[None]:
    """Turn errors of options, the file system and GPU memory into errors of one line."""
    try:
        yield
    except ValueError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"{error.filename or 'file system'}: {error.strerror}") from None
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise CommandError("The GPU has too little memory for this many rows at once: lower --batch.") from None
        raise
