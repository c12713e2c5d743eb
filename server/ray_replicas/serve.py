"""Several replicas of the server behind one address, on one machine or many, with Ray Serve.

Each replica is a process with its own model and the same app as `superdraft serve` without Ray. A typing session
(header `x-session-id`) stays on one replica, where the beginning of its prompt is cached.
"""

import gc
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from starlette.types import ASGIApp

from superdraft.server.errors import CommandError
from superdraft.server.ray_replicas.metrics import AllReplicas, ReplicaMetrics
from superdraft.server.ray_replicas.options import (
    APP_NAME,
    KEEP_ALIVE_S,
    check_ngram_models,
    deployment_options,
    ngram_digests,
    replica_settings,
)
from superdraft.server.ray_replicas.proxy import ReplicaMark
from superdraft.server.serving import banner, bind, load_app
from superdraft.server.settings import Settings

if TYPE_CHECKING:
    from superdraft.server.service import Service

_METRICS_TIMEOUT_S = 5.0
_OBJECT_STORE_BYTES = 128 * 1024**2  # of shared memory, which is not used; Ray's default is a third of the machine's


class Replica:
    """One process with a model.

    Args:
        settings: the replica's settings.
        ngram_models: `ngram_digests` of the machine where the server was started.
    """

    def __init__(self, settings: Settings, ngram_models: Mapping[str, str]) -> None:
        check_ngram_models(ngram_models, ngram_digests(settings.home))
        self._settings = settings

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The app, with the model loaded; Ray Serve runs its lifespan."""
        from superdraft.server.observe.log_config import configure_logging

        configure_logging(self._settings.log_level, self._settings.log_format)
        app = load_app(self._settings)
        service: Service = app.state.service
        self._engine, self._registry = service.engine, service.metrics.registry
        context = serve.get_replica_context()
        self._name = context.replica_id.unique_id
        everyone = serve.get_deployment_handle(context.deployment, context.app_name)
        service.metrics.shown = AllReplicas(lambda: _metrics_of(everyone))
        gc.collect()
        gc.freeze()  # as `superdraft serve` does
        return ReplicaMark(app, self._name)

    def check_health(self) -> None:
        """Called by Ray Serve periodically; it replaces a replica that raises."""
        if not self._engine.is_ready:
            raise RuntimeError("the engine keeps failing; the replica's log says why")

    def metrics(self) -> ReplicaMetrics:
        """The metrics of this replica."""
        return ReplicaMetrics(self._name, list(self._registry.collect()))


def application(settings: Settings) -> Any:
    """The application for `serve.run`, `serve run` and `serve deploy`."""
    deployment = serve.deployment(**deployment_options(settings))(serve.ingress()(Replica))
    return deployment.bind(replica_settings(settings), ngram_digests(settings.home))


def _metrics_of(everyone: Any) -> list[ReplicaMetrics]:
    """The metrics of the replicas that answer in time. For threads without an event loop."""
    answers = everyone.broadcast("metrics").results(timeout_s=_METRICS_TIMEOUT_S, return_exceptions=True)
    return [answer for answer in answers if isinstance(answer, ReplicaMetrics)]


def serve_until_signal(settings: Settings) -> None:
    """Start Ray, or join the named cluster; serve until SIGTERM or Ctrl-C; then let running requests end.

    Raises:
        CommandError: the cluster cannot be reached, or no replica starts.
    """
    app = application(settings)
    with _ray(settings):
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, _stop)
        with suppress(KeyboardInterrupt):
            _start(settings, app)
            what = f"{settings.model} ({settings.ray_replicas} replicas on Ray)"
            banner(settings.host, settings.port, what)
            threading.Event().wait()
        serve.delete(APP_NAME)  # waits until the replicas' requests have ended; the proxies still answer
        serve.shutdown()


def _stop(*_: object) -> None:
    """Handle the first signal; the next one ends the process at once."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL)
    raise KeyboardInterrupt


def _check_room(settings: Settings) -> None:
    """Check that the proxies can listen, or do already: a server that was killed leaves Ray serving in its cluster.

    Raises:
        CommandError: the address is in use by another program, or Ray Serve listens elsewhere.
    """
    is_serving = bool(serve.status().proxies)
    try:
        bind(settings.host, settings.port).close()
    except CommandError:
        if not is_serving:
            raise
        return  # those proxies keep running, and the replicas are replaced one by one
    if is_serving:  # Ray does not move them, and others may use them
        raise CommandError(
            f"Ray Serve runs in this cluster already, and does not listen on port {settings.port}. Give its port with "
            "--port, or end it with `serve shutdown`."
        )


def _start(settings: Settings, app: Any) -> None:
    """Start the proxies and the replicas; returns when they take requests."""
    _check_room(settings)
    logging_config = {"enable_access_log": False, "log_level": settings.log_level.upper()}
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": settings.host, "port": settings.port, "keep_alive_timeout_s": KEEP_ALIVE_S},
        logging_config=logging_config,
    )
    try:
        serve.run(app, name=APP_NAME, logging_config=logging_config)
    except RuntimeError as error:
        serve.shutdown()
        raise CommandError(f"no replica starts: {error}") from None


@contextmanager
def _ray(settings: Settings) -> Iterator[None]:
    """A connection to Ray: to a running cluster, or to one on this machine alone, which ends with this process."""
    options: dict[str, Any] = {"namespace": APP_NAME, "log_to_driver": True, "logging_level": settings.log_level}
    if settings.ray_address is None:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    else:
        options["address"] = settings.ray_address
    try:
        ray.init(**options)
    except Exception as error:  # a plain Exception if a machine takes longer than Ray's 30 seconds
        raise CommandError(f"Ray cannot be started or reached: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()
