"""Tabby's agent, which its plugins run and talk to in lines of JSON."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from places import Place


def ask_tabby(package: Path, url: str, place: Place) -> list[str]:
    """What the agent offers at a place, ghost text in brackets.

    Args:
        package: folder of the npm package `tabby-agent`.
        url: of the server.
        place: where to ask.
    """
    text, row, column = place.typed()
    lines = text.split("\n")
    position = sum(len(line) + 1 for line in lines[:row]) + column
    with tempfile.TemporaryDirectory() as home:
        agent = subprocess.Popen(
            ["node", str(package / "dist" / "cli.js")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "HOME": home},
            text=True,
        )
        try:
            _call(agent, 1, "initialize", {"config": {"server": {"endpoint": url}}})
            request = {
                "filepath": f"{home}/{place.file_name}",
                "language": place.language,
                "text": text,
                "position": position,
            }
            answer = _call(agent, 2, "provideCompletions", {**request, "manually": False})
        finally:
            agent.kill()
            agent.wait()
    shown = []
    for choice in answer["choices"]:
        kept = lines[row][: column - (position - choice["replaceRange"]["start"])]
        shown += f"{kept}[{choice['text']}]".split("\n")
    return shown


def _call(agent: "subprocess.Popen[str]", number: int, function: str, argument: dict[str, Any]) -> Any:
    assert agent.stdin is not None
    assert agent.stdout is not None
    agent.stdin.write(json.dumps([number, {"func": function, "args": [argument]}]) + "\n")
    agent.stdin.flush()
    for line in agent.stdout:  # events have the number 0
        answered, result = json.loads(line)
        if answered == number:
            return result
    raise RuntimeError(f"The agent ended before it answered {function}.")
