"""Neovim without a screen, driven by keys, and what it would show."""

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from places import Place

_INDENT = "vim.opt.expandtab, vim.opt.shiftwidth = true, {width}\n"
_GHOST = Path(__file__).with_name("ghost.lua").read_text()


class Neovim:
    """A running Neovim.

    Args:
        program: path of nvim.
        socket: where it listens.
    """

    def __init__(self, program: str, socket: str) -> None:
        self._remote = [program, "--server", socket]

    def send(self, keys: str) -> None:
        """Type keys."""
        subprocess.run([*self._remote, "--remote-send", keys], check=True, capture_output=True)

    def evaluate(self, expression: str) -> str:
        """Evaluate a Vim expression."""
        done = subprocess.run([*self._remote, "--remote-expr", expression], check=True, capture_output=True, text=True)
        return done.stdout or done.stderr

    def ghost(self) -> dict[str, Any]:
        """The cursor's line and the ghost text around it."""
        seen: dict[str, Any] = json.loads(self.evaluate("luaeval('Ghost()')"))
        return seen

    def type_at(self, place: Place) -> None:
        """Go to the place in normal mode, and type its keys in insert mode."""
        self.evaluate(f"cursor({place.row + 1}, {max(place.column, 1)})")
        self.send("a")
        time.sleep(0.5)
        self.send(place.keys)


@contextlib.contextmanager
def running(program: str, init: str, place: Place) -> Iterator[Neovim]:
    """Start Neovim with this Lua configuration on a copy of the place's file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "init.lua").write_text(_INDENT.format(width=place.indent) + init + _GHOST)
        (folder / place.file_name).write_text(place.text)
        socket = str(folder / "socket")
        options = ["--headless", "--clean", "-u", str(folder / "init.lua"), "--listen", socket]
        process = subprocess.Popen(
            [program, *options, str(folder / place.file_name)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
        )
        try:
            while not Path(socket).exists():
                time.sleep(0.05)
            time.sleep(1.0)
            yield Neovim(program, socket)
        finally:
            process.terminate()  # unlike `kill`, this ends the plugin's requests too
            process.wait()


def settled_ghost(editor: Neovim, patience_s: float = 30.0, calm_s: float = 2.0) -> dict[str, Any]:
    """The ghost text once it has stayed the same for a while; without marks if none comes."""
    deadline = time.monotonic() + patience_s
    seen, since = editor.ghost(), time.monotonic()
    while time.monotonic() < deadline and not (seen["marks"] and time.monotonic() - since > calm_s):
        time.sleep(0.2)
        now = editor.ghost()
        if now != seen:
            seen, since = now, time.monotonic()
    return seen


def as_seen(ghost: dict[str, Any]) -> list[str]:
    """The lines as the user sees them, ghost text in brackets."""
    first = "".join(mark["text"] for mark in ghost["marks"])
    below = [line for mark in ghost["marks"] for line in mark["below"]]
    line, column = ghost["line"], ghost["column"]
    return [f"{line[:column]}[{first}]", *(f"[{line}]" for line in below)]
