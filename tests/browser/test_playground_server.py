"""Playground tests of API keys, a server that stops, and the comparison with sampling."""

import re

from playwright.sync_api import expect
from support.engine import FakeEngine
from support.playground import button, expect_ghost, expect_text, unfold, write
from support.serving import serving

from superdraft.decoding.config import EngineConfig
from superdraft.server.app import create_app
from superdraft.server.edge.api_keys import RECHECK_S, SETTLE_S, add_key
from superdraft.server.settings import Settings

RED = "".join(f" red{i}" for i in range(12))


def app(engine=None, **settings):
    return create_app(Settings(**settings), engine or FakeEngine(max_model_len=2048), model_name="tiny")


def test_a_stopped_server_is_reported_until_it_is_back(open_page, keep):
    with serving(app()) as url:
        page = open_page(url)
        write(page, "Hello")
        expect_ghost(page, RED)
    page.keyboard.type(" you")
    banner = page.get_by_role("alert")
    expect(banner).to_contain_text("The server is not responding.")
    expect_ghost(page, "")
    expect_text(page, "Hello you")
    keep(page, "server-stopped")
    page.keyboard.type(" there")  # typing continues
    restarted = app(FakeEngine(EngineConfig(max_num_drafts=2), max_model_len=2048))
    with serving(restarted, port=int(url.rpartition(":")[2])):
        expect(banner).to_be_hidden()
        expect_ghost(page, RED)
        expect_text(page, "Hello you there")
        expect(page.get_by_label("Drafts (k)")).to_have_attribute("max", "2")  # the page fetched the limits again
        expect(page.get_by_label("Drafts (k)")).to_have_value("2")


def test_a_stopped_server_is_noticed_without_typing(open_page):
    with serving(app()) as url:
        page = open_page(url)
        write(page, "Hello")
        expect_ghost(page, RED)
    expect(page.get_by_role("alert")).to_contain_text("The server is not responding.")
    expect_ghost(page, "")


def test_a_key_is_requested_if_the_server_requires_one(open_page, keep, tmp_path):
    keys = tmp_path / "keys.toml"
    key = add_key(keys, "ann", ["complete"])
    with serving(app(api_keys_file=keys)) as url:
        page = open_page(url)
        field = page.get_by_label("API key", exact=True)
        expect(field).to_be_focused()
        expect(page.get_by_text("This server requires an API key.")).to_be_visible()
        keep(page, "api-key")
        field.fill("sd-wrong")
        field.press("Enter")
        expect(page.get_by_text("The API key is not valid")).to_be_visible()
        field.fill(key)
        button(page, "Use this key").click()
        expect(field).to_be_hidden()
        write(page, "Hello")
        expect_ghost(page, RED)
        assert page.evaluate("Object.values(sessionStorage)") == [key]
        assert page.evaluate("Object.values(localStorage)") == []
        page.reload()
        expect(page.get_by_text("tiny", exact=True)).to_be_visible()
        expect(field).to_be_hidden()
        button(page, "Forget the API key").click()
        expect(field).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0


def test_a_new_key_is_requested_after_the_key_is_revoked(open_page, tmp_path):
    keys = tmp_path / "keys.toml"
    key = add_key(keys, "ann", ["complete"])
    with serving(app(api_keys_file=keys)) as url:
        page = open_page(url)
        page.get_by_label("API key", exact=True).fill(key)
        button(page, "Use this key").click()
        write(page, "Hello")
        expect_ghost(page, RED)
        keys.write_text("")
        page.wait_for_timeout(1000 * (SETTLE_S + RECHECK_S) + 200)
        page.keyboard.type("!")
        expect(page.get_by_label("API key", exact=True)).to_be_focused()
        expect_text(page, "Hello!")


def test_side_by_side_the_same_prompt_is_decoded_twice(open_page, keep):
    engine = FakeEngine(EngineConfig(max_num_rows=2), max_model_len=2048)
    with serving(app(engine)) as url:
        page = open_page(url)
        verdict = page.get_by_role("region", name="Side by side").get_by_role("status")
        unfold(page, "Figures")
        button(page, "Compare").click()
        expect(verdict).to_have_text("Type some text first.")
        write(page, "Hello")
        expect_ghost(page, RED)
        num_seen = len(engine.seen)
        button(page, "Compare").click()
        expect(verdict).to_contain_text(
            "Sampling used 1.0 times as many model rows"
        )  # the fake engine's rows are constant
        prefill, superposed, sampled = engine.seen[num_seen : num_seen + 3]
        assert {job.token_ids for job in (prefill, superposed, sampled)} == {tuple(map(ord, "Hello"))}
        assert prefill.params.max_tokens == 0
        assert (superposed.params.strategy, superposed.params.num_drafts) == ("superposed", 3)
        assert (sampled.params.strategy, sampled.params.num_branches) == ("sample", 2)  # limited to the server's rows
        titles = page.get_by_role("article").get_by_role("heading")
        expect(titles).to_have_text(["Superposed, k = 3", re.compile("2 . sampling")])
        for title, count in (("Superposed", 3), ("sampling", 2)):
            side = page.get_by_role("article", name=title)
            expect(side.get_by_role("listitem")).to_have_count(count)
            expect(side.get_by_text(re.compile(r"^[\d.]+ ms$"))).to_be_visible()
        keep(page, "side-by-side")
