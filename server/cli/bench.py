"""`superdraft lab bench`: a command for each benchmark."""

import typer

from superdraft.server.cli.lazy import add_commands

_IN_PROCESS, _OVER_HTTP = "superdraft.benchmarks.in_process.", "superdraft.benchmarks.over_http."

app = typer.Typer(help="Measure the engine and the server.", no_args_is_help=True)
add_commands(
    app,
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
        "replicas": (f"{_OVER_HTTP}replicas", "Kill, add and remove Ray Serve replicas under load."),
    },
)
