"""Share of key presses with ghost text on the playground, typed in Chromium at fixed pauses.

    .venv/bin/python tests/browser/ghost_share.py http://127.0.0.1:8000

A key press counts if ghost text is on the screen when the next key is pressed; it is right if it begins with that key.
Figures depend on the machine and its load: compare pages and servers only on the same one.
"""

import argparse
import itertools
import shutil
import statistics
import sys
import time
from dataclasses import dataclass

from playwright.sync_api import Page, sync_playwright

from superdraft.benchmarks.typing_texts import TEXTS

# Notes what is on the screen at each key, before the page itself learns of the key.
_WATCH = """() => {
    window.ghosts = [];
    addEventListener("keydown", (event) => {
        const ghost = document.querySelector(".ghost")?.textContent ?? "";
        window.ghosts.push({ghost, key: event.key, ms: performance.now()});
    }, {capture: true});
}"""


@dataclass(frozen=True)
class Row:
    """The result of one pause between keys: milliseconds, and shares of the keys."""

    pause_ms: float
    num_keys: int
    shown: float
    right: float
    real_pause_ms: float


def typed(page: Page, url: str, text: str, pause_ms: float) -> list[dict]:
    """What was on the screen at each key after the first, and when."""
    page.goto(url)
    page.locator("#model:not(:empty)").wait_for(state="attached")
    page.evaluate(_WATCH)
    page.locator("#text").click()
    start_s = time.perf_counter()
    for number, char in enumerate(text):
        page.wait_for_timeout(max(0.0, (start_s + number * pause_ms / 1000 - time.perf_counter()) * 1000))
        page.keyboard.press(char if char != "\n" else "Enter")
    return page.evaluate("ghosts")


def measure(page: Page, url: str, texts: list[str], pause_ms: float) -> Row:
    """Type the texts, each on a fresh page."""
    seen, pauses = [], []
    for text in texts:
        keys = typed(page, url, text, pause_ms)
        seen += keys[1:]
        pauses += [later["ms"] - earlier["ms"] for earlier, later in itertools.pairwise(keys)]
    shown = [key for key in seen if key["ghost"]]
    right = [key for key in shown if key["ghost"].startswith(key["key"])]
    return Row(pause_ms, len(seen), len(shown) / len(seen), len(right) / len(seen), statistics.median(pauses))


def print_row(*cells: str) -> None:
    sys.stdout.write("".join(f"{cell:>17}" for cell in cells) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print a table, one line per pause."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url", help="address of the playground")
    parser.add_argument("--pauses-ms", type=float, nargs="+", default=[120, 200, 300])
    parser.add_argument("--num-texts", type=int, default=3)
    parser.add_argument("--num-chars", type=int, default=120, help="typed per text")
    options = parser.parse_args()
    texts = [text[: options.num_chars] for text in TEXTS[: options.num_texts]]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        print_row("ms per key", "really", "keys", "with ghost text", "that is right")
        for pause_ms in options.pauses_ms:
            row = measure(page, options.url, texts, pause_ms)
            shares = f"{row.shown:.0%}", f"{row.right:.0%}"
            print_row(f"{row.pause_ms:g}", f"{row.real_pause_ms:.0f}", str(row.num_keys), *shares)
        browser.close()


if __name__ == "__main__":
    main()
