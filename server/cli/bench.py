"""`superdraft bench`: what a step costs, and what a server carries."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
from superdraft.server.errors import CommandError

app = typer.Typer(help="Measure the engine and the server.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def group() -> None:
    """Measure the engine and the server."""


@app.command()
def step(
    model: Annotated[str, typer.Option(help="As in serve.")] = "smollm2-135m",
    num_drafts: Annotated[list[int] | None, typer.Option("--num-drafts", "-k", help="Repeatable.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of each kind.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Compare a superposed step with a greedy one, n-gram model included."""
    from superdraft.benchmarks.in_process.step import main

    main(model=model, num_drafts=num_drafts or [3, 8], steps=steps, as_json=as_json)


@app.command()
def latency(
    model: Annotated[str, typer.Option(help="As in serve.")] = "smollm2-135m",
    num_drafts: Annotated[int, typer.Option("--num-drafts", "-k", min=1)] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Prompts, each for every contender.")] = 40,
    keys: Annotated[int, typer.Option(min=1, help="Key presses.")] = 200,
    peer: Annotated[
        list[str] | None, typer.Option(help="transformers, llama.cpp or none. Repeatable.  [default: both]")
    ] = None,
    peer_threads: Annotated[int | None, typer.Option(min=1, help="Of the peers.  [default: all cores]")] = None,
    dtype: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    num_threads: Annotated[int | None, typer.Option(min=1, help="As in serve.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Wait for drafts over HTTP, in turns with transformers and llama.cpp (which must be installed); then type."""
    from superdraft.benchmarks.over_http.latency import PEERS, main

    main(
        model=model,
        num_drafts=num_drafts,
        rounds=rounds,
        keys=keys,
        peers=[] if peer == ["none"] else peer or list(PEERS),
        peer_threads=peer_threads,
        serve_options=_options({"--dtype": dtype, "--num-threads": num_threads}),
        as_json=as_json,
    )


@app.command()
def throughput(
    model: Annotated[str, typer.Option(help="As in serve.")] = "smollm2-135m",
    clients: Annotated[list[int] | None, typer.Option(min=1, help="At most so many. Repeatable.  [4, 16]")] = None,
    num_drafts: Annotated[
        list[int] | None, typer.Option("--num-drafts", "-k", min=1, help="Repeatable.  [default: 3, 8]")
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Repeatable.  [default: int4, bfloat16]")] = None,
    p95_ms: Annotated[float, typer.Option(min=1, help="Limit of the 95th percentile of the latency.")] = 1000.0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each combination.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each turn.")] = 5.0,
    kv_memory: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    num_threads: Annotated[int | None, typer.Option(min=1, help="As in serve.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Compare the requests a second of superposed drafting and sampling, each within a limit of latency."""
    from superdraft.benchmarks.over_http.throughput import main

    main(
        model=model,
        clients=clients or [4, 16],
        num_drafts=num_drafts or [3, 8],
        dtypes=dtype or ["int4", "bfloat16"],
        limit_ms=p95_ms,
        rounds=rounds,
        seconds=seconds,
        serve_options=_options({"--kv-memory": kv_memory, "--num-threads": num_threads}),
        as_json=as_json,
    )


@app.command()
def startup(
    model: Annotated[str, typer.Option(help="As in serve.")] = "smollm2-135m",
    runs: Annotated[int, typer.Option(min=1, help="Starts.")] = 7,
    dtype: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    kv_memory: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Start a server again and again: seconds until it is ready, and its memory."""
    from superdraft.benchmarks.over_http.startup import main

    main(model=model, runs=runs, serve_options=_options({"--dtype": dtype, "--kv-memory": kv_memory}), as_json=as_json)


@app.command()
def quick(
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of everything.")] = 15,
    record: Annotated[bool, typer.Option("--record", help="Write the ratios down for later comparison.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Compare ratios of the engine's times with the recorded ones. Exit code 1 if one grew beyond its tolerance."""
    from superdraft.benchmarks.in_process.quick import main

    if not main(rounds=rounds, record=record, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def gpu(
    device: Annotated[str, typer.Option(help="cuda, cuda:N or cpu.")] = "cuda",
    shapes: Annotated[str, typer.Option(help="full, or tiny to try the code out on a CPU.")] = "full",
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Time decode steps on a GPU: by rows and positions, superposed beside greedy, and the host's choice of tokens."""
    from superdraft.benchmarks.in_process.gpu import OptionError, main

    try:
        main(device=device, shapes=shapes, as_json=as_json)
    except OptionError as error:
        raise CommandError(str(error)) from None


@app.command()
def ngram(
    models: Annotated[list[str] | None, typer.Argument(help="N-gram models.  [default: smollm2-135m]")] = None,
    text: Annotated[Path | None, typer.Option(help="Text or .jsonl for contexts.  [default: built in]")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed warm steps.")] = 1000,
    cold_starts: Annotated[int, typer.Option(min=0, help="Timed first steps from a cold disk cache.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Time the n-gram model's part of a step, for k = 3, m = 9 and k = 8, m = 64, warm and cold."""
    from superdraft.benchmarks.in_process.ngram import main

    main(models=models or ["smollm2-135m"], text=text, steps=steps, cold_starts=cold_starts, as_json=as_json)


@app.command("typing")
def key_presses(
    model: Annotated[str, typer.Option(help="As in serve.")] = "smollm2-135m",
    dtype: Annotated[str, typer.Option(help="As in serve.")] = "auto",
    prompts: Annotated[Path | None, typer.Option(help="JSON lines with a field prompt.  [default: built in]")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts to type.")] = 200,
    keys: Annotated[int, typer.Option(min=1, help="Key presses of each prompt.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Type prompts key by key: what the reuse of prefixes saves."""
    from superdraft.benchmarks.in_process.key_presses import main

    main(model=model, dtype=dtype, prompts=prompts, num_prompts=limit, num_keys=keys, as_json=as_json)


@app.command()
def healing(
    prompts: Annotated[
        list[Path], typer.Option("--prompts", help="JSON lines with prompt, reference and typed. Repeatable.")
    ],
    model: Annotated[str, typer.Option(help="As in serve.")] = "smollm2-135m",
    dtype: Annotated[str, typer.Option(help="As in serve.")] = "auto",
    decoder: Annotated[str, typer.Option(help="As in eval quality.")] = "served",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many prompts.  [default: all]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Complete words that are typed half, with token healing and without."""
    from superdraft.benchmarks.in_process.healing import main

    main(prompts=prompts, model=model, dtype=dtype, decoder=decoder, limit=limit, as_json=as_json)


@app.command()
def healing_cost(
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            "--prompts", help="JSON lines with prompt, reference and perhaps typed. Repeatable.  [default: built in]"
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="As in serve.")] = "smollm2-135m",
    dtype: Annotated[str, typer.Option(help="As in serve.")] = "auto",
    num_drafts: Annotated[
        list[int] | None, typer.Option("--num-drafts", "-k", min=1, help="Repeatable.  [default: 3, 8]")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="New tokens of each draft.")] = 10,
    limit: Annotated[int, typer.Option(min=1, help="Prompts that end behind a word, and as many inside one.")] = 40,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Time requests with token healing and without, in turns: prompt, decode steps, and the host's part."""
    from superdraft.benchmarks.in_process.healing_cost import main
    from superdraft.server.observe.log_config import configure_logging

    configure_logging("warning", "console")
    main(
        model=model,
        dtype=dtype,
        num_drafts=num_drafts or [3, 8],
        max_tokens=max_tokens,
        prompts=prompts or [],
        limit=limit,
        as_json=as_json,
    )


@app.command()
def gap_keys(
    cases: Annotated[Path | None, typer.Option(help="As in eval infill.")] = None,
    from_source: Annotated[Path | None, typer.Option(help="Or a folder of source code to make cases of.")] = None,
    kind: Annotated[str, typer.Option(help="Of such cases: mid or word.")] = "mid",
    context_lines: Annotated[str | None, typer.Option(help="As in eval infill.  [default: all]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Lines.  [default: all, 100 of source]")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of cases.")] = 0,
    keys: Annotated[int, typer.Option(min=2, help="Key presses of each line.")] = 10,
    num_drafts: Annotated[int, typer.Option("--num-drafts", "-k", min=1, help="Drafts for a gap.")] = 3,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", min=2, help="Of each draft.  [default: the server's limit]")
    ] = None,
    model: Annotated[str, typer.Option(help="As in serve.")] = "qwen2.5-coder-0.5b",
    dtype: Annotated[str, typer.Option(help="As in serve.")] = "auto",
    device: Annotated[str, typer.Option(help="As in serve.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Type the ends of lines of code key by key: what each layout of a gap's prompt costs."""
    from superdraft.benchmarks.in_process.gap_keys import CaseChoice, main
    from superdraft.evaluation.cases.infill_cases import parse_window
    from superdraft.evaluation.decoders.workbench import ModelChoice
    from superdraft.server.observe.log_config import configure_logging

    configure_logging("warning", "console")
    window = None if context_lines is None else parse_window(context_lines)
    main(
        cases=CaseChoice(cases, from_source, kind, limit, seed, window),
        num_keys=keys,
        models=ModelChoice(model, dtype, device),
        num_drafts=num_drafts,
        max_tokens=max_tokens,
        as_json=as_json,
    )


@app.command()
def replay(
    prompts: Annotated[
        list[Path] | None, typer.Option("--prompts", help="JSON lines with prompt and reference. Repeatable.")
    ] = None,
    keys: Annotated[int, typer.Option(min=1, help="Key presses in all.")] = 500,
    keys_each: Annotated[int, typer.Option(min=1, help="Key presses of each prompt.")] = 60,
    num_drafts: Annotated[int, typer.Option("--num-drafts", "-k", min=1, help="Drafts.")] = 3,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="New tokens of each draft.")] = 10,
    latency_ms: Annotated[float | None, typer.Option(min=0, help="Of an answer.  [default: as measured]")] = None,
    requests_per_key: Annotated[float, typer.Option(min=0.01, help="The session's budget.")] = 0.3,
    accept: Annotated[bool, typer.Option("--accept", help="Take the best draft whenever it is right.")] = False,
    url: Annotated[str | None, typer.Option(help="A running server; without it one is started here.")] = None,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    model: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    dtype: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Type texts through the client's typing session. Exit code 1 if a suggestion did not fit the text."""
    from superdraft.benchmarks.over_http.replay import main

    given = {"--model": model, "--dtype": dtype}
    if url is not None and any(given.values()):
        raise CommandError("--model and --dtype are for a server that is started here, without --url.")
    is_consistent = main(
        prompts=prompts or [],
        num_keys=keys,
        keys_each=keys_each,
        num_drafts=num_drafts,
        max_tokens=max_tokens,
        latency_ms=latency_ms,
        requests_per_key=requests_per_key,
        accepts=accept,
        url=url,
        api_key=read_key(api_key, api_key_file),
        serve_options=[part for flag, value in given.items() if value is not None for part in (flag, value)],
        as_json=as_json,
    )
    if not is_consistent:
        raise typer.Exit(1)


@app.command()
def load(
    clients: Annotated[list[int] | None, typer.Option(min=1, help="People typing. Repeatable.  [default: 4]")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long they type, for each combination.")] = 60.0,
    strategy: Annotated[list[str] | None, typer.Option(help="Repeatable.  [default: superposed]")] = None,
    num_drafts: Annotated[
        list[int] | None, typer.Option("--num-drafts", "-k", min=1, help="Repeatable.  [default: 3]")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="New tokens of each draft.")] = 10,
    closed: Annotated[bool, typer.Option("--closed", help="Ask again when answered, and type no keys.")] = False,
    url: Annotated[str | None, typer.Option(help="A running server; without it one is started here.")] = None,
    model: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    dtype: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    kv_memory: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Let people type against a server. Exit code 1 if a request has no answer or ends in an error."""
    from superdraft.benchmarks.over_http.load import main

    given = {"--model": model, "--dtype": dtype, "--kv-memory": kv_memory}
    if url is not None and any(given.values()):
        raise CommandError("--model, --dtype and --kv-memory are for a server that is started here, without --url.")
    all_answered = main(
        num_clients=clients or [4],
        seconds=seconds,
        strategies=strategy or ["superposed"],
        num_drafts=num_drafts or [3],
        max_tokens=max_tokens,
        is_closed=closed,
        url=url,
        # Closed loops compare throughput: who asks for more rows than there are slots waits instead of being refused.
        serve_options=_options(given) + (["--queue-timeout-ms", "60000", "--max-waiting", "1000"] if closed else []),
        as_json=as_json,
    )
    if not all_answered:
        raise typer.Exit(1)


@app.command()
def overload(
    factor: Annotated[float, typer.Option(min=1.1, help="Times what the server can do.")] = 4.0,
    seconds: Annotated[float, typer.Option(min=1, help="How long.")] = 60.0,
    baseline: Annotated[float, typer.Option(min=1, help="Seconds at saturation before and after it.")] = 15.0,
    num_slots: Annotated[int, typer.Option(min=1, help="As in serve.")] = 8,
    model: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    dtype: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    queue_timeout_ms: Annotated[int | None, typer.Option(help="As in serve.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Ask a server for more than it can do. Exit code 1 if it does not keep what is promised."""
    from superdraft.benchmarks.over_http.overload import main

    is_kept = main(
        factor=factor,
        seconds=seconds,
        baseline_s=baseline,
        num_slots=num_slots,
        serve_options=_options({"--model": model, "--dtype": dtype, "--queue-timeout-ms": queue_timeout_ms}),
        as_json=as_json,
    )
    if not is_kept:
        raise typer.Exit(1)


@app.command()
def restart(
    seconds: Annotated[float, typer.Option(min=0, help="Load before each signal.")] = 10.0,
    clients: Annotated[int, typer.Option(min=1, help="Who ask, again as soon as they are answered.")] = 8,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="New tokens of each draft.")] = 10,
    model: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    dtype: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Stop and kill a server under load, and start it again. Exit code 1 if the stop broke off a draft."""
    from superdraft.benchmarks.over_http.restart import main

    given = {"--model": model, "--dtype": dtype}
    is_kept = main(
        seconds=seconds,
        num_clients=clients,
        max_tokens=max_tokens,
        serve_options=[part for flag, value in given.items() if value is not None for part in (flag, value)],
        as_json=as_json,
    )
    if not is_kept:
        raise typer.Exit(1)


@app.command()
def replicas(
    sessions: Annotated[int, typer.Option(min=1, help="Typing at the same time.")] = 12,
    clients: Annotated[int, typer.Option(min=1, help="Of the load.")] = 12,
    model: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    dtype: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    ngram_model: Annotated[str | None, typer.Option(help="As in serve.")] = None,
    kv_memory: Annotated[str, typer.Option(help="As in serve.")] = "256MiB",
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Kill, add and remove replicas on Ray Serve under load. Exit code 1 if something is lost that should not be."""
    from superdraft.benchmarks.over_http.replicas import main

    given = {"--model": model, "--dtype": dtype, "--ngram-model": ngram_model, "--kv-memory": kv_memory}
    is_kept = main(
        num_sessions=sessions,
        num_clients=clients,
        serve_options=_options(given),
        as_json=as_json,
    )
    if not is_kept:
        raise typer.Exit(1)


def _options(given: Mapping[str, object]) -> list[str]:
    """Options of `serve` as they are written, without those that were not given."""
    return [part for flag, value in given.items() if value is not None for part in (flag, str(value))]
