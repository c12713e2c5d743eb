"""`superdraft lab eval`: a command for each evaluation."""

import typer

from superdraft.server.cli.lazy import add_commands

_RUNS = "superdraft.evaluation.runs."

app = typer.Typer(help="Measure how good the drafts are.", no_args_is_help=True)
add_commands(
    app,
    {
        "quality": (f"{_RUNS}prompts", "Compare decoders: perplexity, hits, keystrokes saved, distinctness."),
        "completion": (f"{_RUNS}prompts", "Measure drafts after words and inside words, broken words included."),
        "infill": (f"{_RUNS}infill", "Fill gaps in source code."),
        "lines": (f"{_RUNS}inside_lines", "Measure what a server shows inside lines."),
        "qa": (f"{_RUNS}questions", "Measure how often drafts answer questions: P@1, P@2, P@3."),
        "texts": (f"{_RUNS}texts", "Show drafts of everyday texts side by side, to be read."),
    },
)
