"""Who may ask for what, what one caller keeps from another, and what browsers are told."""

import ipaddress
import json
import logging
import threading
import time

import pytest
import structlog
from starlette.testclient import TestClient
from support.decoding import tiny_engine
from support.serving import sessions
from support.waiting import PATIENCE_S

from superdraft.server import serving
from superdraft.server.app import create_app
from superdraft.server.cli import serve as cli_serve
from superdraft.server.edge.api_keys import add_key
from superdraft.server.errors import CommandError
from superdraft.server.observe.log_config import configure_logging
from superdraft.server.settings import Settings
from superdraft.server.settings_sources import load_settings

BODY = {"prompt": "hi", "max_tokens": 1}
COMPLETING = ["/v1/completions", "/completions", "/v1/drafts", "/v1/fim/completions", "/infill", "/completion"]


@pytest.fixture
def keys(tmp_path):
    file = tmp_path / "keys.toml"
    made = {name: add_key(file, name, [scope]) for name, scope in (("ann", "complete"), ("mo", "metrics"))}
    return file, made | {"bob": add_key(file, "bob", ["complete"]), "root": add_key(file, "root", ["admin"])}


@pytest.fixture
def locked(make_client, keys):
    return make_client(api_keys_file=keys[0])


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def test_every_route_but_health_and_readiness_wants_a_key(locked):
    open_routes = {"/health", "/ready", "/v1/health"}
    for path, operations in locked.get("/openapi.json").json()["paths"].items():
        for method in operations:
            answer = locked.request(method, path.replace("{model_id}", "tiny"), content=b"{")
            assert (answer.status_code == 401) == (path not in open_routes), path


@pytest.mark.parametrize("path", COMPLETING)
def test_a_key_opens_the_routes_and_errors_have_the_routes_shape(locked, keys, path):
    body = {"input_prefix": "hi", "input_suffix": "", **BODY} if path == "/infill" else BODY
    for headers, code in (({}, "missing_api_key"), (bearer("sd-wrong"), "invalid_api_key")):
        answer = locked.post(path, content=b"not even JSON", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        error = answer.json()["error"]
        assert error["type"] == "authentication_error"
        assert error["code"] == (401 if path in ("/infill", "/completion") else code)
        assert "sd-wrong" not in answer.text
    assert locked.post(path, json=body, headers=bearer(keys[1]["ann"])).status_code == 200
    assert locked.post(path, json=body, headers={"x-api-key": keys[1]["ann"]}).status_code == 200
    assert locked.post(path, json=body, headers=bearer(keys[1]["mo"])).status_code == 403


def test_metrics_have_a_scope_of_their_own(locked, keys):
    statuses = [locked.get("/metrics", headers=bearer(keys[1][name])).status_code for name in ("ann", "mo", "root")]
    assert statuses == [403, 200, 200]


def test_without_keys_everything_is_open_whatever_is_sent(client):
    assert client.post("/v1/drafts", json=BODY, headers=bearer("none")).status_code == 200
    assert client.get("/metrics").status_code == 200


def test_keys_from_the_environment_and_the_file_work_together(make_client, keys):
    client = make_client(api_keys_file=keys[0], api_keys="env=0123456789-0123456789")
    for key in (keys[1]["ann"], "0123456789-0123456789"):
        assert client.post("/v1/drafts", json=BODY, headers=bearer(key)).status_code == 200


def test_one_key_cannot_end_the_session_of_another(locked, engine, keys):
    engine.on_step = lambda: time.sleep(0.02)
    answers = {}

    def ask(name):
        body = {"prompt": "hi", "max_tokens": 10, "session_id": "s"}
        answers[name] = locked.post("/v1/drafts", json=body, headers=bearer(keys[1][name])).status_code

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("ann", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers == {"ann": 200, "bob": 200}
    assert sessions(locked.app) == {("key ann", "s"), ("key bob", "s")}


def test_twins_with_different_keys_do_not_share_a_run(locked, engine, keys):
    locked.app.state.service.fan_out._window_s = 60
    for name in ("ann", "ann", "bob"):
        locked.post("/v1/completions", json=BODY, headers=bearer(keys[1][name]))
    assert len(engine.seen) == 2


@pytest.mark.parametrize("isolation", ["key", "none"])
def test_a_key_learns_nothing_from_what_is_cached_of_others_prompts(keys, isolation):
    engine, _ = tiny_engine()
    app = create_app(Settings(api_keys_file=keys[0], prefix_isolation=isolation), engine, model_name="tiny")
    body = {"prompt": "my pin is 1234, do not tell", "max_tokens": 1, "num_drafts": 1}

    def cached(name, path="/v1/drafts"):
        answer = client.post(path, json=body, headers=bearer(keys[1][name]))
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    with TestClient(app) as client:
        first, again = cached("ann"), cached("ann")
        other = [cached("bob", path) for path in ("/v1/drafts", "/v1/completions")]
    assert first == 0 < again
    assert other[0] == (again if isolation == "none" else 0)
    assert other[1] > 0  # within a key, all routes share


def test_without_keys_all_callers_are_one():
    engine, _ = tiny_engine()
    with TestClient(create_app(Settings(), engine, model_name="tiny")) as client:
        cached = [
            client.post("/v1/drafts", json={**BODY, "prompt": "hi there"}).json()["usage"]["cached_tokens"]
            for _ in range(2)
        ]
    assert cached[0] == 0 < cached[1]


def test_the_log_names_the_key_and_never_shows_it(locked, keys, capsys):
    root, config = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers, root.level
    configure_logging("debug", "json")
    try:
        for path, key in (("/v1/drafts", keys[1]["ann"]), ("/v1/drafts", "sd-unknown")):
            locked.post(path, json=BODY, headers=bearer(key))
    finally:
        root.handlers, root.level = handlers, level
        structlog.configure(**config)
    lines = [line for line in capsys.readouterr().err.splitlines() if '"event": "request"' in line]
    assert [json.loads(line).get("api_key") for line in lines] == ["ann", None]
    assert not [line for line in lines if "sd-" in line]


# Browsers


def test_cors_is_off(client):
    headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert client.options("/v1/drafts", headers=headers).status_code == 405
    answer = client.post("/v1/drafts", json=BODY, headers={"origin": "https://a.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_cors_is_for_exact_origins_and_needs_no_key_for_the_question(make_client, keys):
    client = make_client(cors_origins=("https://a.example",), api_keys_file=keys[0])
    wanted = "authorization,content-type,x-stainless-arch,x-stainless-retry-count"  # as OpenAI's SDK in a browser
    ask = {"access-control-request-method": "POST", "access-control-request-headers": wanted}
    allowed = client.options("/v1/drafts", headers={"origin": "https://a.example", **ask})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    assert allowed.headers["access-control-allow-headers"] == wanted
    for origin in ("https://b.example", "https://a.example.evil", "http://a.example", "null"):
        refused = client.options("/v1/drafts", headers={"origin": origin, **ask})
        assert "access-control-allow-origin" not in refused.headers
    answer = client.post("/v1/drafts", json=BODY, headers={"origin": "https://a.example", **bearer(keys[1]["ann"])})
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert {"x-request-id", "x-should-retry"} <= set(answer.headers["access-control-expose-headers"].split(", "))
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["*", "a.example", "https://a.example/", "https://a.example/x", "null", ""])
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(CommandError, match="--cors-origins"):
        load_settings({"cors_origins": [origin]})


@pytest.mark.parametrize("path", ["/health", "/nothing", "/v1/drafts", "/docs"])
def test_every_answer_has_the_safe_headers(client, path):
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "server" not in headers


# What pages may send


@pytest.fixture
def ask(engine):
    """Sends a request to a server, by default one without keys. Returns the answer."""

    def ask(host="localhost", path="/v1/models", *, method="GET", content=None, settings=None, **headers):
        app = create_app(Settings(**(settings or {})), engine, model_name="tiny")
        with TestClient(app, headers={"host": host}) as client:
            return client.request(
                method, path, content=content, headers={name.replace("_", "-"): text for name, text in headers.items()}
            )

    return ask


NAMES = ("localhost", "localhost:8000", "LOCALHOST.", "a.localhost:1", "127.0.0.1:8000", "[::1]:8000", "10.0.0.7", "")
FOREIGN = ("evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "[::1", "a b")


@pytest.mark.parametrize("host", [*NAMES, "workstation:8000", "drafts.example:443"])
def test_this_machines_names_and_allowed_ones_are_answered(ask, host):
    assert ask(host, settings={"allowed_hosts": ("Drafts.example",)}).status_code == 200


@pytest.mark.parametrize("settings", [{}, {"host": "0.0.0.0", "allow_unauthenticated": True}], ids=["local", "public"])
@pytest.mark.parametrize("host", FOREIGN)
def test_a_site_cannot_take_a_server_without_keys_for_its_own(ask, host, settings):
    for path in ("/v1/models", "/metrics", "/docs", "/health"):
        refused = ask(host, path, settings=settings)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_not_allowed")
        assert refused.headers["x-request-id"] == refused.json()["request_id"]
        assert refused.headers["x-content-type-options"] == "nosniff"


def test_with_keys_hosts_are_checked_where_some_are_named(ask, keys):
    for allowed_hosts, status in (((), 200), (("drafts.example",), 403)):  # no page has the key
        settings = {"api_keys_file": keys[0], "allowed_hosts": allowed_hosts}
        assert ask("evil.example", settings=settings, **bearer(keys[1]["ann"])).status_code == status


PAGE = {"origin": "https://evil.example", "sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}
JSON = {"content_type": "application/json; charset=utf-8"}
DRAFTS = {"path": "/v1/drafts", "method": "POST", "content": json.dumps(BODY)}
ALLOWED = {"cors_origins": ("https://evil.example",)}


@pytest.mark.parametrize(
    ("headers", "settings", "status"),
    [
        (PAGE, {}, 403),
        (PAGE | JSON, {}, 403),
        (PAGE, ALLOWED, 200),
        (PAGE | {"sec_fetch_mode": "navigate", "content_type": "text/plain"}, {}, 403),  # a form
        # A browser that names no site: it asks before it sends JSON to another one, and is told no.
        ({"origin": "https://evil.example", "content_type": "text/plain"}, {}, 403),
        ({"origin": "null"}, {}, 403),
        ({"origin": "http://localhost", "sec_fetch_site": "same-origin"} | JSON, {}, 200),
        ({"content_type": "application/x-www-form-urlencoded"}, {}, 200),  # curl, which is no browser
    ],
)
def test_pages_of_other_sites_cannot_make_a_server_without_keys_work(ask, engine, headers, settings, status):
    answer = ask(**DRAFTS, settings=settings, **headers)
    assert answer.status_code == status
    assert len(engine.seen) == (status == 200)
    if status == 403:
        assert answer.json()["error"]["code"] == "cross_site"


def test_other_sites_may_link_to_the_pages(ask):
    page = PAGE | {"sec_fetch_mode": "navigate"}
    assert ask(path="/", **page).status_code == 200
    assert ask(path="/v1/models", **PAGE).status_code == 403


def test_with_keys_other_sites_are_not_refused(ask, keys):
    settings = {"api_keys_file": keys[0]}
    assert ask(**DRAFTS, settings=settings, **PAGE, **bearer(keys[1]["ann"])).status_code == 200
    assert ask(**DRAFTS, settings=settings, **PAGE).status_code == 401


# Where it listens


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "::", "fe80::1%eth0"])
def test_a_public_address_needs_keys_or_a_word(address):
    with pytest.raises(CommandError, match="--allow-unauthenticated"):
        serving.check_exposure(Settings(host=address), address)
    serving.check_exposure(Settings(host=address, allow_unauthenticated=True), address)
    serving.check_exposure(Settings(host=address, api_keys="a=0123456789-0123456789"), address)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "::1"])
def test_this_machine_does_not(address):
    assert ipaddress.ip_address(address).is_loopback
    serving.check_exposure(Settings(), address)


def test_a_port_that_was_taken_during_loading_is_told(monkeypatch):
    with serving.bind("127.0.0.1", 0) as listener, serving.bind("127.0.0.1", listener.getsockname()[1]) as other:
        monkeypatch.setattr(serving, "load_app", lambda *_, **__: other.listen())
        with pytest.raises(CommandError, match=r"cannot listen on port \d+: Address already in use.*another --port"):
            serving.run_server(Settings(), listener)


def test_serve_refuses_before_it_loads_anything(monkeypatch):
    monkeypatch.setattr(cli_serve, "run_server", lambda *_: pytest.fail("it was about to serve"))
    with pytest.raises(CommandError, match="anyone"):
        cli_serve.main(host="0.0.0.0", port=0)


def test_serve_tells_a_bad_key_file_before_it_loads_anything(monkeypatch, tmp_path):
    monkeypatch.setattr(cli_serve, "run_server", lambda *_: pytest.fail("it was about to serve"))
    (tmp_path / "keys.toml").write_text("[[key]]\nname = 3\n")
    with pytest.raises(CommandError, match=r"key\.0\.name in .*keys\.toml"):
        cli_serve.main(api_keys_file=tmp_path / "keys.toml", port=0)
