"""The playground's page as the server sends it; what it does is tested in a browser, in tests/browser."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.engine import FakeEngine

from superdraft.decoding.config import EngineConfig
from superdraft.server import serving
from superdraft.server.wires import pages

STATIC = Path(pages.__file__).parents[1] / "static"
KEYS = "ann=0123456789-0123456789"


class Page(HTMLParser):
    """Every attribute, and the text inside scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.attributes, self.inline, self._tag = [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self._tag = tag
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        if self._tag in ("script", "style"):
            self.inline += data.strip()


def test_anybody_may_open_the_page_though_its_requests_need_a_key(make_client):
    client = make_client(api_keys=KEYS)
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert client.head("/").status_code == 200
    linked = re.findall(r'(?:href|src)="(static/[^"]+)"', page.text)
    assert linked
    assert all(client.get(f"/{link}").status_code == 200 for link in linked)
    for path in ("/v1/limits", "/v1/ngram_models"):
        assert client.get(path).status_code == 401
    assert client.post("/v1/drafts", json={"prompt": "hi"}).status_code == 401


def test_the_policy_allows_the_pages_own_files_alone(client):
    policy = dict(part.split(" ", 1) for part in client.get("/").headers["content-security-policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    allowed = {name for name, value in policy.items() if value == "'self'"}
    assert allowed == {"script-src", "style-src", "img-src", "connect-src"}
    assert "unsafe" not in str(policy)
    assert "http" not in str(policy)


def test_the_page_needs_no_more_than_the_policy_allows(client):
    page = Page(client.get("/").text)
    assert page.inline == ""
    assert [name for _, name, _ in page.attributes if name == "style" or name.startswith("on")] == []
    links = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert all(link == "docs" or (STATIC / link.removeprefix("static/")).is_file() for link in links)


@pytest.mark.parametrize("path", sorted(path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*.*")))
def test_its_files_name_no_other_site_and_exist(client, path):
    answer = client.get(f"/static/{path}")
    assert answer.status_code == 200
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
    assert answer.headers["content-type"].startswith(kinds[Path(path).suffix])
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert re.findall(r"https?:(?!//www\.w3\.org/2000/svg)", answer.text) == []
    for imported in re.findall(r'from "(\./[^"]+)"', answer.text):
        assert ((STATIC / path).parent / imported).is_file()


@pytest.mark.parametrize(
    "path",
    ["none.js", "../app.py", "%2e%2e/app.py", "..%2fapp.py", "client", "client/none.js", "client/../../app.py", ""],
)
def test_nothing_else_is_served(client, path):
    answer = client.get(f"/static/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "route_not_found"


def test_limits_are_those_of_the_engine_and_the_settings(make_client, engine: FakeEngine):
    engine.config = EngineConfig(max_num_drafts=9, max_tokens=77, max_num_rows=5)
    client = make_client(token_healing=False, min_probability_shown=0.3)
    assert client.get("/v1/limits").json() == {
        "object": "limits",
        "model": "tiny",
        "max_model_len": 64,
        "max_tokens": 77,
        "max_num_drafts": 9,
        "max_branches": 5,
        "max_body_bytes": 512 * 1024,
        "max_timeout_ms": 60_000,
        "strategies": ["superposed", "sample", "greedy", "sample+superposed"],
        "default_strategy": "superposed",
        "token_healing": False,
        "min_probability_shown": 0.3,
        "sees_suffix": False,
    }


def test_who_starts_the_server_is_told_where_the_page_is(capsys):
    serving.banner("127.0.0.1", 8123, "tiny")
    url = "http://127.0.0.1:8123"
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(f"on {url}, docs at {url}/docs")
    assert second == f"To try it, open {url} in a browser."


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_server_for_all_addresses_is_tried_on_this_machine(host, capsys):
    serving.banner(host, 8123, "tiny")
    assert capsys.readouterr().err.endswith("To try it, open http://localhost:8123 in a browser.\n")
