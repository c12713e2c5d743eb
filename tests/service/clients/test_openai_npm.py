"""OpenAI's own JavaScript package against the running server.

Needs Node.js, and the package in tests/node/node_modules or the folder that OPENAI_NODE_MODULES names;
CONTRIBUTING.md says how to install it.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.engine import FakeEngine
from support.readers import wait_for_readers
from support.serving import serving
from support.waiting import PATIENCE_S, eventually

from superdraft.decoding.errors import SequenceFailedError
from superdraft.server.app import create_app
from superdraft.server.settings import Settings

SCRIPT = Path(__file__).parents[2] / "node" / "completions.mjs"
NODE = shutil.which("node")
MODULES = Path(os.environ.get("OPENAI_NODE_MODULES", SCRIPT.parent / "node_modules"))

pytestmark = [
    pytest.mark.skipif(NODE is None, reason="Node.js is not installed"),
    pytest.mark.skipif(
        not (MODULES / "openai").is_dir(), reason=f"{MODULES} has no `openai`: run `npm ci` in tests/node"
    ),
]


@pytest.fixture(scope="module")
def engine():
    return FakeEngine()


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def results(module_patch, engine, tmp_path_factory):
    """What the script got, by task. Prompts are tokens of one character: "fail" makes the engine fail half-way; "close"
    and "abort" never end by themselves.
    """

    wait_for_readers(engine, module_patch)
    keep_up = engine.on_step

    def step():
        keep_up()
        for job in engine.jobs.values():
            if job.token_ids == tuple(b"fail") and job.num_steps == 2:
                engine.fail[job.request_id] = SequenceFailedError("No numbers.")
            if job.token_ids in (tuple(b"close"), tuple(b"abort")):
                job.num_steps = min(job.num_steps, 2)

    engine.on_step = step
    folder = tmp_path_factory.mktemp("node")  # Node.js looks for packages beside the script
    shutil.copy(SCRIPT, folder)
    (folder / "node_modules").symlink_to(MODULES.resolve())
    settings = Settings()
    with serving(create_app(settings, engine, model_name="tiny")) as url:
        done = subprocess.run(
            [NODE, folder / SCRIPT.name],
            env={**os.environ, "SERVER_URL": url},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert eventually(lambda: not engine.jobs)
    return {line["name"]: line["result"] for line in lines}


def test_completion(results):
    choices = results["completion"]["choices"]
    assert [choice["text"] for choice in choices] == [
        " red0 red1 red2",
        " green0 green1 green2",
        " blue0 blue1 blue2",
    ]
    assert choices[0]["logprobs"]["tokens"] == [" red0", " red1", " red2"]
    assert results["completion"]["usage"]["total_tokens"] == 11
    assert results["completion"]["warnings"] == []


def test_strategy_by_the_models_name(results, engine):
    assert len(results["aliased"]["choices"]) == 2
    assert "sample" in {job.params.strategy for job in engine.seen}


def test_stream(results):
    *chunks, last = results["stream"]
    texts = {0: "", 1: ""}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == {0: " red0 red1 red2", 1: " green0 green1 green2"}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 6)


def test_models(results):
    assert [model["id"] for model in results["models"]][:2] == ["tiny", "superdraft"]
    assert results["model"]["id"] == "superdraft:greedy"


@pytest.mark.parametrize("task", ["badRequest", "badStream"])
def test_wrong_request(results, task):
    error = results[task]
    assert (error["kind"], error["status"], error["param"], error["code"]) == (
        "BadRequestError",
        400,
        "n",
        "invalid_value",
    )


def test_unknown_model_and_no_retry_of_what_is_wrong(results):
    assert (results["notFound"]["kind"], results["notFound"]["code"]) == ("NotFoundError", "model_not_found")
    assert results["retries"]["sent"] == 1


def test_error_in_mid_stream_is_thrown(results):
    assert results["brokenStream"]["code"] == "sequence_failed"
    assert "No numbers." in results["brokenStream"]["message"]


def test_a_left_stream_and_an_aborted_call_are_cancelled(results, engine):
    assert results["closed"]["choices"][0]["text"] == " "
    assert results["aborted"]["kind"] == "APIUserAbortError"
    ids = {bytes(job.token_ids).decode(): job.request_id for job in engine.seen}
    assert {ids["close"], ids["abort"]} <= set(engine.cancelled)
