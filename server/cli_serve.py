"""`superdraft serve`."""

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from superdraft.server.errors import CommandError

if TYPE_CHECKING:
    from superdraft.server.settings import Settings


def serve(  # one parameter a setting; None: the environment's value or the default
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="0 picks a free one.  [default: 8000]")] = None,
    model: Annotated[
        str | None, typer.Option(help="Known name, folder, .gguf file or hub id.  [default: smollm2-135m]")
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="The model's name in answers.")] = None,
    ngram_model: Annotated[
        str | None, typer.Option(help="auto (the shipped one, if it fits), none, a name or a folder.  [default: auto]")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Cache folder of models.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16 or int4 (CPU only).")] = None,
    trust_remote_code: Annotated[
        bool | None, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Prompt and draft, in tokens.  [default: 2048]")] = None,
    kv_memory: Annotated[str | None, typer.Option(help="For the KV cache, taken at start.  [default: 2GiB]")] = None,
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
    token_healing: Annotated[
        bool | None,
        typer.Option("--token-healing/--no-token-healing", help="Finish a half typed word.  [default: on]"),
    ] = None,
    default_alpha: Annotated[float | None, typer.Option(help="Weight of the n-gram model, 0 to 1.")] = None,
    default_tau: Annotated[float | None, typer.Option(help="Temperature of the language model's part.")] = None,
    shutdown_grace_s: Annotated[
        float | None, typer.Option(help="Seconds for running requests at shutdown.  [default: 10]")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.  [default: info]")] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json.  [default: console]")] = None,
) -> None:
    """Serve drafts over HTTP. Every option is also an environment variable: SUPERDRAFT_PORT and so on."""
    flags = dict(locals())
    from superdraft.server.log_config import configure_logging
    from superdraft.server.settings import load_settings

    settings = load_settings(flags)
    configure_logging(settings.log_level, settings.log_format)
    with bind(settings.host, settings.port) as listener:  # before loading: a taken port is told at once
        run_server(settings, listener)


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


def run_server(settings: "Settings", listener: socket.socket) -> None:
    """Load the model, then answer on `listener` until a signal comes."""
    from superdraft.server.app import create_app
    from superdraft.server.http_server import HttpServer
    from superdraft.server.loading import load_service

    loaded = load_service(settings)
    app = create_app(
        settings,
        loaded.engine,
        model_name=loaded.model_name,
        ngram_models=loaded.ngram_models,
        alpha=loaded.alpha,
        tau=loaded.tau,
    )
    server = HttpServer(app, on_started=lambda: _banner(settings, listener, app.state.service))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises the signal again after a clean shutdown
        sys.exit(130)


def _banner(settings: "Settings", listener: socket.socket, service: Any) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    ngram_model = service.ngram_models.default or "none"
    sys.stderr.write(
        f"Superdraft serves {service.model_name} (n-gram model: {ngram_model}) on {url}, docs at {url}/docs\n"
    )
    sys.stderr.flush()
