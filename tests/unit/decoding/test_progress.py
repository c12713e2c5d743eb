"""Stages of a long start on standard error."""

import io
import re
import time
from contextlib import redirect_stderr

import pytest
from support.waiting import eventually

from superdraft.decoding import progress
from superdraft.decoding.progress import Stage, stage


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(progress, "FIRST_S", 0.01)
    monkeypatch.setattr(progress, "LOG_S", 0.02)
    monkeypatch.setattr(progress, "TERMINAL_S", 0.02)


class Stream(io.StringIO):
    """In place of standard error."""

    def __init__(self, *, is_terminal: bool = False):
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def wait_for(self, pattern: str) -> None:
        assert eventually(lambda: re.search(pattern, self.getvalue())), pattern


def test_a_short_stage_says_nothing():
    with redirect_stderr(Stream()) as stderr, stage("Reading x"):
        pass
    assert stderr.getvalue() == ""


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(quick):
    with redirect_stderr(Stream()) as stderr, stage("Reading x", total=10_000_000) as current:
        stderr.wait_for(r"Reading x: \d+ s\n")
        current.advance(2_000_000)
        stderr.wait_for(r"Reading x: \d+ s, 2 MB of 10 MB")
    assert re.search(r"\nReading x: done in \d+ s\n$", stderr.getvalue())
    assert "\r" not in stderr.getvalue()


def test_a_terminal_gets_one_line_that_goes_away(quick, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stderr = Stream(is_terminal=True)
    with redirect_stderr(stderr), stage("Reading x", total=10_000_000, measured=lambda: 5_000_000):
        stderr.wait_for("5 MB of 10 MB")
    assert "\x1b[2K" in stderr.getvalue()  # erases the line
    assert "done" not in stderr.getvalue()


def test_a_terminal_that_cannot_erase_gets_the_lines_of_a_log(quick, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stderr = Stream(is_terminal=True)
    with redirect_stderr(stderr), stage("Reading x"):
        stderr.wait_for(r"Reading x: \d+ s\n")
    assert "\x1b" not in stderr.getvalue()


def test_another_stream_in_place_of_standard_error_changes_nothing(quick):
    with redirect_stderr(Stream()) as stderr, stage("Reading x"), redirect_stderr(Stream()) as other:
        stderr.wait_for(r"Reading x: \d+ s\n")
    assert other.getvalue() == ""


def test_a_failure_ends_the_stage(quick):
    stderr = Stream()

    def fail():
        with redirect_stderr(stderr), stage("Reading x"):
            stderr.wait_for("Reading x")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    said = stderr.getvalue()
    time.sleep(0.1)
    assert stderr.getvalue() == said


def test_rate_and_size(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    current = Stage("Fetching x", 3_000_000_000)
    assert str(current) == "Fetching x: 0 s"
    current.advance(1_500_000_000)
    now[0] = 110
    assert str(current) == "Fetching x: 10 s, 1.5 GB of 3.0 GB, 150 MB/s"
    current.advance(9_000_000_000)  # more than was estimated
    assert "3.0 GB of 3.0 GB" in str(current)


def test_a_measure_that_does_not_know_is_left_out():
    assert str(Stage("Reading x", 5, lambda: None)) == "Reading x: 0 s"
