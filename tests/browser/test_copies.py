"""The page's request, copied as a command and as a program: both run and give the page's drafts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect
from support.engine import FakeEngine
from support.playground import button, expect_ghost, text_area
from support.serving import serving
from support.waiting import PATIENCE_S

from superdraft.server.app import create_app
from superdraft.server.edge.api_keys import add_key
from superdraft.server.settings import Settings

RED = "".join(f" red{i}" for i in range(12))
TEXT = "It's \"5 $HOME\" \\ `ls`, \tsaid\nAnn: '"


def copied(page, name):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button(page, f"Copy as {name}").click()
    expect(page.get_by_role("status").filter(has_text=f"Copied as {name}.")).to_have_count(1)
    return page.evaluate("() => navigator.clipboard.readText()")


def run(command, **environment):
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["curl", "Python"])
def test_the_copy_gives_the_drafts_of_the_page(open_page, name, tmp_path: Path):
    keys = tmp_path / "keys.toml"
    key = add_key(keys, "ann", ["complete"])
    engine = FakeEngine(max_model_len=2048)
    with serving(create_app(Settings(api_keys_file=keys), engine, model_name="tiny")) as url:
        page = open_page(url)
        page.get_by_label("API key", exact=True).fill(key)
        button(page, "Use this key").click()
        page.get_by_label("N-gram model").select_option("none")
        text_area(page).fill(TEXT)
        expect_ghost(page, RED)
        text = copied(page, name)
        assert key not in text
        page.close()
        num_seen = len(engine.seen)
        command = ["sh", "-c", text] if name == "curl" else [sys.executable, "-c", text]
        printed = run(command, SUPERDRAFT_API_KEY=key)
        assert RED in printed
        assert "green0" in printed
        assert "blue0" not in printed  # withheld
        (request,) = engine.seen[num_seen:]
        assert "".join(map(chr, request.token_ids)) == TEXT
        assert (request.params.num_drafts, request.params.max_tokens, request.params.trim) == (3, 12, "none")


def test_a_page_without_a_clipboard_copies_from_a_selection(page):
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.reload()
    text_area(page).fill("Hello")
    button(page, "Copy as curl").click()
    expect(button(page, "Copied")).to_be_visible()
    expect(page.get_by_role("textbox")).to_have_count(1)
