"""Records the playground while somebody types: docs/pictures/playground.gif.

Start a server, then run `python docs/pictures/record_playground.py http://localhost:8000`. It needs Chromium (Debian:
apt-get install chromium), and playwright and Pillow, which `make setup` installs. Only the keys are prepared. What is
shown is what the server answers, as fast as it answers; frames that show the same are joined.
"""

import io
import shutil
import sys
import time
from pathlib import Path

from PIL import Image, ImageChops
from playwright.sync_api import Page, sync_playwright

TARGET = Path(__file__).with_name("playground.gif")
SIZE = {"width": 680, "height": 530}
KEY_S = 0.12
FRAME_S = 0.1
READING_S = 1.8
NUM_COLOURS = 32
SCRIPT = (
    ("type", "Thanks for the invit"),
    ("press", "Control+ArrowRight"),  # accept a word
    ("type", " I look forward to"),
    ("press", "Alt+BracketRight"),  # the next draft
    ("press", "Tab"),  # accept it
)


class Recorder:
    """Takes pictures of a page; each stays on display until the next one that differs."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._frames: list[Image.Image] = []
        self._taken_at: list[float] = []

    def watch(self, seconds: float) -> None:
        """Take pictures for a while."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            self._keep(Image.open(io.BytesIO(self._page.screenshot())).convert("RGB"), now)
            self._page.wait_for_timeout(1000 * FRAME_S)

    def save(self, path: Path) -> None:
        """Write the pictures as an endless GIF."""
        ends = [*self._taken_at[1:], time.monotonic()]
        durations = [round(1000 * (end - start)) for start, end in zip(self._taken_at, ends, strict=True)]
        palette = self._frames[-1].quantize(NUM_COLOURS)
        frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self._frames]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)

    def _keep(self, frame: Image.Image, now: float) -> None:
        if not self._frames or ImageChops.difference(frame, self._frames[-1]).getbbox() is not None:
            self._frames.append(frame)
            self._taken_at.append(now)


def record(url: str) -> None:
    """Record the script against a running server."""
    with sync_playwright() as playwright:
        # Containers lack the user namespaces that the sandbox needs. The page is the server's own.
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(url)
        page.get_by_role("textbox").first.click()
        recorder = Recorder(page)
        for action, keys in SCRIPT:
            if action == "press":
                page.keyboard.press(keys)
            else:
                for key in keys:
                    page.keyboard.type(key)
                    recorder.watch(KEY_S)
            recorder.watch(READING_S)
        recorder.save(TARGET)
        browser.close()


if __name__ == "__main__":
    record(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000")
