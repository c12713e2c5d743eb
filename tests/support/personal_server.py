"""Server with personal models in a separate process that tests can kill: `python personal_server.py HOME KEYS`."""

import socket
import sys
from pathlib import Path

from support.engine import FakeEngine

from superdraft.server.app import create_app
from superdraft.server.serving import HttpServer
from superdraft.server.settings import Settings

if __name__ == "__main__":
    settings = Settings(home=Path(sys.argv[1]), api_keys=sys.argv[2], personal_ngrams=True)
    app = create_app(settings, FakeEngine(), model_name="tiny")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = HttpServer(app, on_started=lambda: print(listener.getsockname()[1], flush=True))  # noqa: T201
        server.run(sockets=[listener])
