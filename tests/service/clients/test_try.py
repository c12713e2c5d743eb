"""`superdraft try` as a user has it: a process on a terminal, a server on a socket."""

import os
import pty
import select
import subprocess
import sys
import time

from support.serving import MAIN
from support.waiting import PATIENCE_S


class Screen:
    """The user's side of a terminal."""

    def __init__(self, descriptor):
        self.descriptor, self.seen = descriptor, ""

    def press(self, keys):
        os.write(self.descriptor, keys.encode())

    def wait_for(self, text):
        """Read until the program has written `text` since the last call."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.descriptor], [], [], 0.1)[0]:
                self.seen += os.read(self.descriptor, 65536).decode(errors="replace")
                if "\x1b[6n" in self.seen:  # it asks where the cursor is
                    self.seen = self.seen.replace("\x1b[6n", "")
                    self.press("\x1b[1;1R")
        self.seen = self.seen.partition(text)[2]


def test_typing_taking_and_leaving(url):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "20"}
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "try", "--url", url, "-n", "3"], stdin=theirs, stdout=theirs, env=environment
    )
    os.close(theirs)
    try:
        screen = Screen(ours)
        screen.wait_for("Ctrl-D quit")
        screen.press("hi")
        screen.wait_for("red0 red1 red2")
        screen.press("\x1b]")
        screen.wait_for("green0")
        screen.press("\t\x04")
        screen.wait_for("hi green0 green1 green2\r\n")
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
