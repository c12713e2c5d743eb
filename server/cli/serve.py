"""`superdraft serve`."""

import os
import sys
from typing import Any

from superdraft.server.cli.settings_options import takes_settings
from superdraft.server.edge.api_keys import ApiKeys
from superdraft.server.observe.log_config import configure_logging
from superdraft.server.serving import bind, check_exposure, run_server
from superdraft.server.settings_sources import load_settings


@takes_settings()
def main(**flags: Any) -> None:
    """Serve drafts over HTTP.

    Every option can also be an environment variable (SUPERDRAFT_PORT) or a key of the TOML file (port).
    """
    settings = load_settings(flags)
    configure_logging(settings.log_level, settings.log_format)
    # Before the model is loaded, which takes seconds. In a cluster, an earlier server may still have the port.
    port = settings.port if settings.ray_address is None else 0
    with bind(settings.host, port) as listener:
        check_exposure(settings, listener.getsockname()[0])
        ApiKeys.of(settings)  # a bad file is reported now, too
        sys.stderr.write(f"Loading {settings.model} ...\n")
        if settings.ray_replicas is None:
            run_server(settings, listener)
            return
        port = settings.port or listener.getsockname()[1]
    from superdraft.server.ray_replicas.options import prepare_environment

    if settings.ray_address is None:
        prepare_environment(os.environ)
    from superdraft.server.ray_replicas.serve import serve_until_signal  # imports ray, which reads the environment

    serve_until_signal(settings.model_copy(update={"port": port}))
