"""The app around a fake engine: in memory, and behind a real socket."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest
import structlog
from fastapi import FastAPI
from starlette.testclient import TestClient
from support.engine import FakeEngine
from support.readers import wait_for_readers
from support.serving import serving
from support.waiting import PATIENCE_S

from superdraft.server.app import create_app
from superdraft.server.edge.http_protocol import BoundedHttpProtocol
from superdraft.server.service import NgramModels
from superdraft.server.settings import Settings


@pytest.fixture(scope="session", autouse=True)
def _plain_log() -> None:
    """The default renderer draws tracebacks, which takes seconds."""
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])


@pytest.fixture(autouse=True)
def _one_row_a_request(monkeypatch) -> None:
    """Engines here have few slots, and tests count requests in them; who wants more rows asks for them."""
    monkeypatch.setenv("SUPERDRAFT_DEFAULT_MAX_BRANCHES", "1")


@pytest.fixture
def pieces(monkeypatch) -> list[bytes]:
    """What connections of the server have received, in order."""
    received: list[bytes] = []
    data_received = BoundedHttpProtocol.data_received
    monkeypatch.setattr(
        BoundedHttpProtocol, "data_received", lambda self, data: (data_received(self, data), received.append(data))
    )
    return received


@pytest.fixture
def connections(monkeypatch) -> list[BoundedHttpProtocol]:
    """The server's ends of all connections, in order."""
    made: list[BoundedHttpProtocol] = []
    connection_made = BoundedHttpProtocol.connection_made
    monkeypatch.setattr(
        BoundedHttpProtocol,
        "connection_made",
        lambda self, transport: (connection_made(self, transport), made.append(self)),
    )
    return made


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def make_client(engine) -> Iterator[Callable[..., TestClient]]:
    with contextlib.ExitStack() as stack:

        def make(ngram_models: NgramModels | None = None, **settings) -> TestClient:
            app = create_app(Settings(**settings), engine, model_name="tiny", ngram_models=ngram_models)
            return stack.enter_context(TestClient(app))

        yield make


@pytest.fixture
def client(make_client) -> TestClient:
    return make_client()


@pytest.fixture
def app(engine) -> FastAPI:
    return create_app(Settings(), engine, model_name="tiny")


@pytest.fixture
def url(app) -> Iterator[str]:
    with serving(app) as address:
        yield address


class Steps(threading.Semaphore):
    """Permits for steps, and how many steps have waited for one."""

    num_begun = 0

    def wait(self) -> None:
        self.num_begun += 1
        self.acquire(timeout=PATIENCE_S)


@pytest.fixture
def stepwise(engine) -> Iterator[Steps]:
    """The engine waits in every step until the test lets one go."""
    permits = Steps(0)
    engine.on_step = permits.wait
    yield permits
    engine.on_step = lambda: None
    permits.release(1000)


@pytest.fixture
def kept_up_with(engine, monkeypatch) -> None:
    """The engine waits in every step until all outputs are read, so that none takes the place of another."""
    wait_for_readers(engine, monkeypatch)
