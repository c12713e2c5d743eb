"""Options of Ray Serve, made from the settings. Independent of Ray, so that they can be tested without it."""

import hashlib
import secrets
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

from superdraft.ngram_models.store.manifest import MANIFEST_FILE
from superdraft.ngram_models.store.registry import list_ngram_models, named_model_folder
from superdraft.server.bridge.room import places_of
from superdraft.server.errors import SettingsError
from superdraft.server.ray_replicas.routes import ROUTE_HEADER
from superdraft.server.settings import Settings

APP_NAME: Final = "superdraft"
ROUTER: Final = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
KEEP_ALIVE_S: Final = 75  # as in `serving`

ENVIRONMENT: Final[Mapping[str, str]] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # otherwise similar log lines of different requests are dropped
    # A replica that takes longer to report its load (default: 0.1 s) loses its sessions to another.
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "5",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # the default of 5 is too short for a busy machine
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "superdraft.server.ray_replicas.proxy.middlewares",
    "RAY_SERVE_SESSION_ID_HEADER_KEY": ROUTE_HEADER,
}
"""Environment variables that every process of Ray needs."""

_DEFAULT_SLOTS = 64  # `MAX_DEFAULT_SLOTS` of `decoding.model.kv_cache`, which imports torch
_OTHER_REQUESTS = 16  # operators' requests, and those of clients that have just left
_SLACK_S = 5.0  # for the last answers to be written
_HEALTH_PERIOD_S = 5.0
_HEALTH_TIMEOUT_S = 30.0
_DRAIN_LOOK_S = 0.2


def prepare_environment(environment: MutableMapping[str, str]) -> None:
    """Prepare the environment for a Ray cluster on this machine alone, which inherits it. Call before importing Ray.

    Ray's ports are open on all interfaces, and anyone who can use them can run code. So unless the environment says
    otherwise, they require a token, which is generated here.

    Args:
        environment: changed in place.
    """
    environment.update(ENVIRONMENT)
    if "RAY_AUTH_MODE" not in environment:
        environment["RAY_AUTH_MODE"] = "token"
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def replica_settings(settings: Settings) -> Settings:
    """The settings of a replica, which runs in another folder and shares its machine with others.

    Paths become absolute. Unless the settings give a number, the model gets one thread per core reserved by Ray.
    """
    from superdraft.decoding.loading.source import resolve  # late: it imports torch, which the proxy does not need

    changes: dict[str, Any] = {"num_threads": settings.num_threads or max(1, int(settings.ray_replica_cpus))}
    for name in ("home", "api_keys_file"):
        if (path := getattr(settings, name)) is not None:
            changes[name] = path.expanduser().absolute()
    source = resolve(settings.model, settings.home)
    if source.path is not None and source.listed is None:
        changes["model"] = str(source.path.absolute())
    is_path = settings.ngram_model not in ("auto", "none") and not named_model_folder(
        settings.ngram_model, settings.home
    )
    if is_path and (path := Path(settings.ngram_model).expanduser()).exists():
        changes["ngram_model"] = str(path.absolute())
    return settings.model_copy(update=changes)


def deployment_options(settings: Settings) -> dict[str, Any]:
    """Options of `ray.serve.deployment`.

    A replica gets more requests than it has slots, for two reasons. The replica refuses excess requests itself, at once
    and oldest first. And a keystroke that replaces an earlier one of its session must reach a full replica, too.
    """
    num_replicas = settings.ray_replicas or 1
    num_ongoing = places_of(settings.num_slots or _DEFAULT_SLOTS) + settings.max_waiting + _OTHER_REQUESTS
    return {
        "name": APP_NAME,
        "max_ongoing_requests": num_ongoing,
        "max_queued_requests": num_ongoing * num_replicas,  # per proxy, while there is no replica
        "num_replicas": num_replicas,
        "request_router_config": {"request_router_class": ROUTER},
        "graceful_shutdown_timeout_s": settings.shutdown_grace_s + _SLACK_S,
        "graceful_shutdown_wait_loop_s": _DRAIN_LOOK_S,
        "health_check_period_s": _HEALTH_PERIOD_S,
        "health_check_timeout_s": _HEALTH_TIMEOUT_S,
        "ray_actor_options": {
            "num_cpus": settings.ray_replica_cpus,
            "num_gpus": settings.ray_replica_gpus,
        },
    }


def ngram_digests(home: Path | None) -> dict[str, str]:
    """SHA-256 of the manifest of each n-gram model that has a name. Manifests hold the binaries' digests."""
    return {
        model.name: hashlib.sha256((model.folder / MANIFEST_FILE).read_bytes()).hexdigest()
        for model in list_ngram_models(home)
    }


def check_ngram_models(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuse a replica whose answers would differ from the others'. It may have additional models.

    Args:
        expected: `ngram_digests` of the machine where the server was started.
        found: `ngram_digests` of the replica's machine.

    Raises:
        SettingsError: models are missing or differ.
    """
    wrong = [
        f"{name} ({'differs' if name in found else 'missing'})"
        for name in expected
        if found.get(name) != expected[name]
    ]
    if wrong:
        raise SettingsError(
            f"the n-gram models of this machine are not those of the machine that started the server: "
            f"{', '.join(wrong)}. Let all machines share one home folder, or copy its ngram folder to each."
        )
