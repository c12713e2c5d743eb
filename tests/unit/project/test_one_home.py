"""What has one home in the source: the cost of a step, who supersedes, who the caller is; and the way of a prompt."""

import ast
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
from support.engine import FakeEngine
from support.serving import serving

from superdraft.server.app import create_app
from superdraft.server.settings import Settings

ROOT = Path(__file__).parents[3]
MOST_MODULES = 27
"""Modules of the server whose functions a prompt passes on its way to the engine."""


def sources(*folders: str) -> Iterator[tuple[str, ast.AST]]:
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def calls_of(name: str, *folders: str) -> list[str]:
    return [
        path
        for path, tree in sources(*folders)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name
    ]


def test_there_is_one_model_of_what_a_step_costs():
    classes = [
        (path, node.name)
        for path, tree in sources("decoding", "server")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "Cost" in node.name
    ]
    assert classes == [("decoding/engine/load.py", "StepCost")]


def test_one_place_supersedes():
    assert calls_of("SupersededError", "decoding", "server") == ["server/bridge/typists.py"]


def test_decoding_knows_requests_and_no_people():
    texts = {path: path.read_text().lower() for path in (ROOT / "decoding").rglob("*") if path.suffix in (".py", ".md")}
    assert len(texts) > 50
    assert [path for path, text in texts.items() if "session" in text] == []


def test_the_caller_is_an_argument_from_the_wires_on():
    for name in ("current_caller", "counted_caller"):
        assert calls_of(name, "server", "decoding") == ["server/wires/common.py"]


def test_what_is_remembered_of_typists_is_in_one_place():
    """Besides feedback, which remembers answers."""
    remembering = [
        path
        for path, tree in sources("server/bridge", "decoding")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any("OrderedDict" in ast.unparse(field) for field in ast.walk(node) if isinstance(field, ast.AnnAssign))
    ]
    assert set(remembering) == {"server/bridge/typists.py", "decoding/engine/kept_logits.py"}


def test_a_prompt_passes_few_modules_on_its_way_to_the_engine():
    passed, is_on_its_way, engine = set[str](), threading.Event(), FakeEngine()
    add = engine.add_request

    def arrived(request):
        is_on_its_way.clear()
        add(request)

    def note(frame, event, _):
        if event == "call" and is_on_its_way.is_set():
            name = frame.f_globals.get("__name__", "")
            is_written = frame.f_code.co_filename != "<string>"  # not made by dataclass
            if is_written and name.startswith("superdraft.server."):
                passed.add(name)

    engine.add_request = arrived
    body = {"prompt": "Thank you for", "num_drafts": 3, "session_id": "me"}
    threading.setprofile(note)  # of the threads that begin now: the server's and the engine's
    try:
        with serving(create_app(Settings(), engine, model_name="tiny")) as url:
            is_on_its_way.set()
            assert httpx.post(f"{url}/v1/drafts", json=body).status_code == 200
            assert not is_on_its_way.is_set()
    finally:
        threading.setprofile(None)
    assert {"superdraft.server.bridge.admission", "superdraft.server.bridge.engine_thread"} <= passed
    assert len(passed) <= MOST_MODULES, sorted(passed)
