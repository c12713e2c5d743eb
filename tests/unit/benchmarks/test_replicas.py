"""What the benchmark of replicas reads in the server's log."""

import io
import logging

import pytest
import structlog
from starlette.testclient import TestClient
from support.engine import FakeEngine

from superdraft.benchmarks.over_http import replicas
from superdraft.server.app import create_app
from superdraft.server.errors import CommandError
from superdraft.server.observe.log_config import configure_logging
from superdraft.server.settings import Settings


@pytest.fixture
def written():
    """What a server with the benchmark's options writes to its log."""
    root, config = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers, root.level
    options = replicas._OPTIONS
    configure_logging(*(options[options.index(name) + 1] for name in ("--log-level", "--log-format")))
    stream = io.StringIO()
    root.handlers[0].setStream(stream)
    yield stream
    root.handlers, root.level = handlers, level
    structlog.configure(**config)


def test_requests_that_two_replicas_answered_are_found_in_the_log(written, tmp_path):
    for ids in (["a", "b"], ["b", "c"]):
        with TestClient(create_app(Settings(), FakeEngine(max_model_len=200), model_name="tiny")) as replica:
            for request_id in ids:
                answer = replica.post("/v1/drafts", json={"prompt": "x"}, headers={"x-request-id": request_id})
                assert answer.is_success
    log = tmp_path / "serve.log"
    log.write_text("".join(f"(ServeReplica pid=7) {line}\n" for line in written.getvalue().splitlines()))
    assert replicas._num_run_twice(log) == 1


def test_a_log_without_requests_is_no_proof(tmp_path):
    log = tmp_path / "serve.log"
    log.write_text('{"event": "engine started"}\n')
    with pytest.raises(CommandError, match="no request lines"):
        replicas._num_run_twice(log)
