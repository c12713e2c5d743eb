"""A start in a cluster in which an earlier server was killed."""

import importlib.util
import socket
from types import SimpleNamespace

import pytest

from superdraft.server.errors import CommandError
from superdraft.server.settings import Settings

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'"),
    pytest.mark.filterwarnings("ignore"),  # Ray's, while it is imported
]


@pytest.mark.parametrize("is_serving", [False, True])
@pytest.mark.parametrize("is_taken", [False, True])
def test_proxies_that_hold_the_port_go_on_and_no_others_are_touched(is_serving, is_taken, monkeypatch):
    from superdraft.server.ray_replicas import serve as replicas

    status = SimpleNamespace(proxies={"node": "HEALTHY"} if is_serving else {})
    monkeypatch.setattr(replicas, "serve", SimpleNamespace(status=lambda: status))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        if is_taken:
            other.listen()
        else:
            other.close()
        settings = Settings(host="127.0.0.1", port=port, ray=True)
        if is_taken == is_serving:
            replicas._check_room(settings)
            return
        told = f"port {port}: Address already in use" if is_taken else f"does not listen on port {port}"
        with pytest.raises(CommandError, match=told):
            replicas._check_room(settings)
