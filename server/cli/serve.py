"""`superdraft serve`."""

import contextlib
import ctypes
import gc
import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from superdraft.server.errors import CommandError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from superdraft.server.settings import Settings


_OTHER_FILES = 256  # models, logs, libraries


def serve(  # one parameter a setting; None: the environment's value, the file's or the default
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; or SUPERDRAFT_CONFIG.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="0 picks a free one.  [default: 8000]")] = None,
    model: Annotated[
        str | None, typer.Option(help="Known name, folder, .gguf file or hub id.  [default: smollm2-135m]")
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="The model's name in answers.")] = None,
    ngram_model: Annotated[
        str | None, typer.Option(help="auto (the shipped one, if it fits), none, a name or a folder.  [default: auto]")
    ] = None,
    max_ngram_models: Annotated[
        int | None, typer.Option(help="N-gram models kept open for the next request.  [default: 8]")
    ] = None,
    feedback: Annotated[
        bool | None,
        typer.Option("--feedback/--no-feedback", help="Count what users did with drafts.  [default: on]"),
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Cache folder of models.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16 or int4.")] = None,
    trust_remote_code: Annotated[
        bool | None, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Prompt and draft, in tokens.  [default: 2048]")] = None,
    kv_memory: Annotated[str | None, typer.Option(help="For the KV cache, reserved at start.  [default: 4GiB]")] = None,
    num_threads: Annotated[
        int | None, typer.Option(help="Processor cores for the model.  [default: all but one]")
    ] = None,
    num_slots: Annotated[
        int | None, typer.Option(help="Branches decoded together.  [default: as many as fit, at most 64]")
    ] = None,
    max_prefill_tokens: Annotated[
        int | None, typer.Option(help="Prompt tokens between two decode steps.  [default: 256]")
    ] = None,
    max_num_drafts: Annotated[int | None, typer.Option(help="Largest k.  [default: 32]")] = None,
    max_batch_prompts: Annotated[int | None, typer.Option(help="Prompts in a request.  [default: 32]")] = None,
    prompt_too_long: Annotated[str | None, typer.Option(help="error or truncate_left.  [default: error]")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Largest request.  [default: 1048576]")] = None,
    max_timeout_ms: Annotated[int | None, typer.Option(help="Largest timeout of a request.  [default: 60000]")] = None,
    default_strategy: Annotated[
        str | None, typer.Option(help="superposed, sample, greedy or sample+superposed.  [default: superposed]")
    ] = None,
    token_healing: Annotated[
        bool | None,
        typer.Option(
            "--token-healing/--no-token-healing",
            help="Go on from the typed text, whatever tokens its end has: finish a half typed word.  [default: on]",
        ),
    ] = None,
    document_start: Annotated[
        bool | None,
        typer.Option(
            "--document-start/--no-document-start",
            help="Begin every text prompt with the token that begins a document.  [default: on]",
        ),
    ] = None,
    fim: Annotated[
        bool | None, typer.Option("--fim/--no-fim", help="Use the model's own tokens to fill gaps.  [default: on]")
    ] = None,
    editor_max_tokens: Annotated[
        int | None, typer.Option(help="Longest draft on the editors' routes.  [default: 16]")
    ] = None,
    fan_out: Annotated[
        bool | None,
        typer.Option("--fan-out/--no-fan-out", help="Twin requests share the drafts of one run.  [default: on]"),
    ] = None,
    fan_out_drafts: Annotated[int | None, typer.Option(help="Drafts of such a run.  [default: 3]")] = None,
    default_selection: Annotated[
        str | None, typer.Option(help="distinct or paper.  [default: paper if n-gram weights are set or tuned]")
    ] = None,
    default_max_branches: Annotated[
        int | None, typer.Option(help="Rows of a request, with selection distinct.  [default: 3]")
    ] = None,
    default_min_probability: Annotated[
        float | None, typer.Option(help="Less probable drafts grow no further, likewise.  [default: 0.01]")
    ] = None,
    default_alpha: Annotated[float | None, typer.Option(help="Weight of the n-gram model, 0 to 1.")] = None,
    default_tau: Annotated[float | None, typer.Option(help="Temperature of the language model's part.")] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="From `superdraft keys new`; SUPERDRAFT_API_KEYS holds keys themselves.")
    ] = None,
    allow_unauthenticated: Annotated[
        bool | None, typer.Option("--allow-unauthenticated", help="Listen beyond this machine without API keys.")
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            "--allowed-hosts",
            help="Name beside localhost, without keys. Repeatable.  [default: none]",
        ),
    ] = None,
    rate_limit: Annotated[str | None, typer.Option(help="Requests of each caller in a time, 600/minute say.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Requests of each caller at once.")] = None,
    cors_origins: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin", "--cors-origins", help="Origin whose pages may ask. Repeatable.  [default: none]"
        ),
    ] = None,
    max_waiting: Annotated[
        int | None, typer.Option(help="Requests at the door of a full server.  [default: 64]")
    ] = None,
    queue_timeout_ms: Annotated[int | None, typer.Option(help="How long one waits there.  [default: 25]")] = None,
    max_connections: Annotated[int | None, typer.Option(help="Open connections.  [default: 2000]")] = None,
    receive_timeout_s: Annotated[
        float | None, typer.Option(help="Seconds for a request to arrive whole.  [default: 20]")
    ] = None,
    shutdown_grace_s: Annotated[
        float | None, typer.Option(help="Seconds for running requests at shutdown.  [default: 10]")
    ] = None,
    ray: Annotated[bool | None, typer.Option("--ray", help="Several replicas, with Ray Serve.")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster, or auto.  [default: start one here]")
    ] = None,
    ray_min_replicas: Annotated[int | None, typer.Option(help="Fewest replicas.  [default: 1]")] = None,
    ray_max_replicas: Annotated[int | None, typer.Option(help="Most replicas.  [default: 4]")] = None,
    ray_replica_cpus: Annotated[float | None, typer.Option(help="Cores kept for each.  [default: 1]")] = None,
    ray_replica_gpus: Annotated[float | None, typer.Option(help="GPUs likewise.  [default: 0]")] = None,
    ray_target_requests: Annotated[
        int | None, typer.Option(help="Requests that each shall work on.  [default: half its slots]")
    ] = None,
    ray_upscale_delay_s: Annotated[
        float | None, typer.Option(help="Seconds of more than that before a replica is added.  [default: 10]")
    ] = None,
    ray_downscale_delay_s: Annotated[
        float | None, typer.Option(help="Seconds of less before one is taken away.  [default: 300]")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.  [default: info]")] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json.  [default: console]")] = None,
) -> None:
    """Serve drafts over HTTP. Options are also environment variables (SUPERDRAFT_PORT) and keys of the file (port)."""
    flags = dict(locals())
    from superdraft.server.observe.log_config import configure_logging
    from superdraft.server.settings import load_settings

    settings = load_settings(flags)
    configure_logging(settings.log_level, settings.log_format)
    with bind(settings.host, settings.port) as listener:  # before loading: a taken port is told at once
        check_exposure(settings, listener.getsockname()[0])
        if not settings.ray:
            run_server(settings, listener)
            return
        port = listener.getsockname()[1]
    from superdraft.server.ray_replicas.options import prepare_environment

    if settings.ray_address is None:
        prepare_environment(os.environ)
    from superdraft.server.ray_replicas.serve import serve_until_signal

    serve_until_signal(settings.model_copy(update={"port": port}))


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet.

    Raises:
        CommandError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CommandError(f"cannot listen on {host}: {error.strerror}. Choose another --host.") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        message = f"cannot listen on {host} port {port}: {error.strerror}. Choose another --port or --host."
        raise CommandError(message) from None
    return listener


def check_exposure(settings: "Settings", address: str) -> None:
    """Refuse to serve other machines without API keys, unless the settings say so.

    Args:
        settings: the server's.
        address: numeric, where it listens.

    Raises:
        CommandError: anybody could use the server.
    """
    has_keys = settings.api_keys is not None or settings.api_keys_file is not None
    if has_keys or settings.allow_unauthenticated or is_loopback(address):
        return
    raise CommandError(
        f"anybody who reaches {settings.host} could use this server: make a key with `superdraft keys new` and name "
        "its file in --api-keys-file, or say --allow-unauthenticated."
    )


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches a numeric address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def run_server(settings: "Settings", listener: socket.socket) -> None:
    """Load the model, then answer on `listener` until a signal comes."""
    from superdraft.server.serving import HttpServer

    with _uncollected():
        app = load_app(settings, is_local=is_loopback(listener.getsockname()[0]))
    allow_open_files(settings.max_connections)
    gc.collect()
    gc.freeze()  # what the libraries made stays: going through it in search of garbage stops everything for 0.3 s
    return_freed_memory()
    service = app.state.service
    what = f"{service.model_name} (n-gram model: {service.ngram_models.default or 'none'})"
    server = HttpServer(app, on_started=lambda: banner(settings.host, listener.getsockname()[1], what))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises the signal again after a clean shutdown
        sys.exit(130)


def load_app(settings: "Settings", *, is_local: bool = False) -> "FastAPI":
    """Load the model; the app around it. `is_local`: as in `create_app`."""
    from superdraft.server.app import create_app
    from superdraft.server.loading import load_service

    loaded = load_service(settings)
    return create_app(
        settings,
        loaded.engine,
        model_name=loaded.model_name,
        ngram_models=loaded.ngram_models,
        drafting=loaded.drafting,
        is_local=is_local,
    )


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: while all is being made it finds little, and takes a quarter of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def return_freed_memory() -> None:
    """Give the system back what loading has freed, 140 MB with the default model; glibc would keep it for later."""
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent from other C libraries
    if trim is not None:
        trim(0)


def allow_open_files(max_connections: int) -> None:
    """Raise the process' own limit of open files, often 1024, as far as the system allows and connections need it."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def banner(host: str, port: int, what: str) -> None:
    """Say on stderr what is served, and where."""
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    sys.stderr.write(f"Superdraft serves {what} on {url}, docs at {url}/docs\n")
    sys.stderr.write(f"To try it, open {url} in a browser.\n")
    sys.stderr.flush()
