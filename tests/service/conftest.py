"""The app around a fake engine: in memory, and behind a real socket."""

import contextlib
from collections.abc import Callable, Iterator

import pytest
import structlog
from starlette.testclient import TestClient
from support.engine import FakeEngine
from support.serving import serving

from superdraft.server.app import create_app
from superdraft.server.service import NgramModels
from superdraft.server.settings import Settings


@pytest.fixture(scope="session", autouse=True)
def _plain_log() -> None:
    """The default renderer draws tracebacks, which takes seconds."""
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])


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
def url(engine) -> Iterator[str]:
    with serving(create_app(Settings(), engine, model_name="tiny")) as address:
        yield address
