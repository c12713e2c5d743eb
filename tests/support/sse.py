"""Strict parser for server-sent events."""

import json

import pytest


def parsed(content: bytes) -> list:
    """Return the events of a stream. Only `data:` lines, keep-alive comments and blank lines are allowed."""
    assert content.endswith(b"\n\n")
    events = []
    for block in content.decode("utf-8").removesuffix("\n\n").split("\n\n"):
        assert "\n" not in block
        if block != ": keep-alive":
            assert block.startswith("data: ")
            events.append(block.removeprefix("data: "))
    assert events.pop() == "[DONE]"
    assert "[DONE]" not in events
    return [json.loads(event, parse_constant=pytest.fail) for event in events]
