"""Command-line options that several benchmarks share."""

from typing import Annotated

import typer

from superdraft.server.cli.settings_options import setting

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
NumDraftsEach = Annotated[
    list[int], typer.Option("--num-drafts", "-k", min=1, help="Number of drafts to measure with. Repeatable.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="New tokens per draft.")]

# Options of a server that the benchmark starts; None: as in `superdraft serve`.
ServerModel = Annotated[str | None, setting("model")]
ServerDtype = Annotated[str | None, setting("dtype")]
ServerKvMemory = Annotated[str | None, setting("kv_memory")]
ServerNumThreads = Annotated[int | None, setting("num_threads")]
