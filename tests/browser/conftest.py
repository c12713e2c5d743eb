"""Fixtures to test the playground in headless Chromium.

The tests use the system's Chromium and download nothing. They are skipped if there is none. SUPERDRAFT_TEST_CHROMIUM
can name another executable.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from support.engine import FakeEngine
from support.serving import serving

from superdraft.server.app import create_app
from superdraft.server.settings import Settings

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
DESKTOP = {"width": 1200, "height": 900}
_TIMEOUT_MS = 20_000  # generous, for busy machines

expect.set_options(timeout=_TIMEOUT_MS)


def find_chromium() -> str | None:
    names = (os.environ.get("SUPERDRAFT_TEST_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@pytest.fixture(scope="module")  # an open browser runs an event loop in this thread, which would disturb other tests
def browser() -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        # Containers lack the user namespaces that the sandbox needs. The pages are our own, so this is safe.
        launched = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(max_model_len=2048)


@pytest.fixture
def url(engine) -> Iterator[str]:
    settings = Settings(min_probability_shown=0)  # the fake's third draft has 8 %
    with serving(create_app(settings, engine, model_name="tiny")) as address:
        yield address


@pytest.fixture
def open_page(browser) -> Iterator[Callable[..., Page]]:
    """Opens a URL in a new browser profile. A script error or a violation of the content policy fails the test."""
    contexts, complaints = [], []

    def on_console(message: ConsoleMessage) -> None:
        # Responses such as 401 and 499 are also reported as errors, but the tests cause them on purpose.
        if message.type == "error" and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    def open_it(address: str, **options) -> Page:
        context = browser.new_context(**{"viewport": DESKTOP} | options)
        context.set_default_timeout(_TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(open_page, url) -> Page:
    return open_page(url)


@pytest.fixture
def keep(request) -> Callable[[Page, str], None]:
    """Saves a screenshot of the whole page to build/screenshots."""

    def screenshot(page: Page, name: str) -> None:
        page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    return screenshot
