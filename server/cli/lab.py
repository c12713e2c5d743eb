"""`superdraft lab`: benchmarks, evaluations and tuning, for those who change the server or choose a model for it."""

import typer

from superdraft.server.cli.lazy import add_commands
from superdraft.server.errors import CommandError

_IN_PROCESS, _OVER_HTTP = "superdraft.benchmarks.in_process.", "superdraft.benchmarks.over_http."
_RUNS = "superdraft.evaluation.runs."

MOVED = ("bench", "eval", "tune")

bench = typer.Typer(help="Measure the engine and the server.", no_args_is_help=True)
add_commands(
    bench,
    {
        "step": (f"{_IN_PROCESS}step", "Time superposed decode steps against greedy ones."),
        "runners": (f"{_IN_PROCESS}runners", "Compare torch and llama.cpp: steps, prompts, loading, memory."),
        "forward": (f"{_IN_PROCESS}forward", "Time forward passes by rows, length and threads."),
        "latency": (f"{_OVER_HTTP}latency", "Time drafts over HTTP, compared with transformers and llama.cpp."),
        "startup": (f"{_OVER_HTTP}startup", "Measure a server's start-up time and memory."),
        "people": (f"{_OVER_HTTP}people", "Let people type: how often they see drafts, and how many keys these save."),
        "elastic": (f"{_OVER_HTTP}elastic", "Measure what requests get, by the number of clients."),
        "overload": (f"{_OVER_HTTP}overload", "Send a server more requests than it can answer."),
        "attack": (f"{_OVER_HTTP}attack", "Let clients behave badly, and look at what others get and at what stays."),
    },
)

evaluate = typer.Typer(help="Measure how good the drafts are.", no_args_is_help=True)
add_commands(
    evaluate,
    {
        "quality": (f"{_RUNS}prompts", "Compare decoders: perplexity, hits, keystrokes saved, distinctness."),
        "completion": (f"{_RUNS}prompts", "Measure drafts after words and inside words."),
        "infill": (f"{_RUNS}infill", "Fill gaps in source code."),
        "lines": (f"{_RUNS}inside_lines", "Measure what a server shows inside lines."),
        "typos": (f"{_RUNS}typos", "Measure drafts after typos, and what corrections do to texts without one."),
        "qa": (f"{_RUNS}questions", "Measure how often drafts answer questions: P@1, P@2, P@3."),
        "texts": (f"{_RUNS}texts", "Show drafts of everyday texts side by side, to be read."),
    },
)

app = typer.Typer(help="Measure speed and quality, and tune settings.", no_args_is_help=True)
app.add_typer(bench, name="bench")
app.add_typer(evaluate, name="eval")
add_commands(
    app, {"tune": ("superdraft.evaluation.runs.tuning", "Find the best settings for a model and an n-gram model.")}
)


def moved(ctx: typer.Context) -> None:
    """Say where a command is that was once at the top level."""
    raise CommandError(f"`superdraft {ctx.info_name}` is now `superdraft lab {ctx.info_name}`.")
