"""examples/editors and examples/curl: every file is read as its editor reads it, and asked or run against a server."""

import ast
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from luaparser import ast as lua_ast
from luaparser import astnodes
from support import editors
from support.engine import FakeEngine
from support.serving import serving

from superdraft.server.app import create_app
from superdraft.server.settings import Settings

ROOT = Path(__file__).parents[3]
EDITORS, CURL = ROOT / "examples" / "editors", ROOT / "examples" / "curl"
PORT = 8012  # as docs/editors.md says it


def lua_value(node):
    match node:
        case astnodes.Table():
            keyed = {field.key.id: field.value for field in node.fields if isinstance(field.key, astnodes.Name)}
            if keyed:
                return {name: lua_value(value) for name, value in keyed.items()}
            return [lua_value(field.value) for field in node.fields]
        case astnodes.String():
            return node.s.decode() if isinstance(node.s, bytes) else node.s
        case astnodes.Number():
            return node.n
        case astnodes.TrueExpr() | astnodes.FalseExpr():
            return isinstance(node, astnodes.TrueExpr)
    raise AssertionError(f"no value: {node}")


def minuet():
    (call,) = lua_ast.parse((EDITORS / "minuet.lua").read_text()).body.body
    assert call.func.idx.id == "setup"
    return lua_value(call.args[0])


def llama_vim():
    text = (EDITORS / "llama.vim").read_text()
    name, _, value = text.replace("\n    \\", " ").removeprefix("let ").partition(" = ")
    assert name == "g:llama_config"
    return ast.literal_eval(value.strip())


def path_of(url):
    parts = urlsplit(url)
    assert (parts.scheme, parts.hostname, parts.port) == ("http", "127.0.0.1", PORT)
    return parts.path


def post(client, path, body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.fixture
def engine():
    return FakeEngine(max_model_len=512)


def test_minuet(client, engine):
    config = minuet()
    options = config["provider_options"][config["provider"]]
    assert config["provider"] == "openai_fim_compatible"
    assert options["api_key"].isupper()  # the name of a variable
    body = editors.MINUET | {"model": options["model"]} | options["optional"]
    assert "template" not in options  # so it sends the text after the cursor, too
    raw = post(client, path_of(options["end_point"]), body).text
    assert "".join(event["choices"][0]["text"] for event in editors.continue_events(raw))
    assert engine.seen[-1].params.max_tokens == 16
    assert config["n_completions"] == Settings().fan_out
    assert set(config["virtualtext"]["keymap"]) == {"accept", "next", "prev", "dismiss"}


def test_llama_vim(client):
    config = llama_vim()
    path = path_of(config["endpoint_fim"])
    asked = {name: config[name] for name in ("n_predict", "n_cmpl")}
    raw = post(client, path, editors.LLAMA_VIM_SEVERAL | asked).text
    assert len(editors.llama_vim_ring(raw, config["n_cmpl"])) == 3


def test_llama_vscode(client):
    config = json.loads((EDITORS / "llama-vscode.json").read_text())
    base, n_cmpl = config["llama-vscode.endpoint"], config["llama-vscode.max_parallel_completions"]
    answer = post(client, path_of(f"{base}/infill"), editors.LLAMA_VSCODE | {"n_cmpl": n_cmpl})
    assert len(editors.LlamaVscode.read(answer.json(), "array").contents) == 3
    assert client.get(path_of(f"{base}/health")).status_code == 200


def test_continue(client):
    config = yaml.safe_load((EDITORS / "continue.yaml").read_text())
    assert {"name", "version", "schema"} <= set(config)
    (model,) = config["models"]
    assert model["roles"] == ["autocomplete"]
    assert model["promptTemplates"]["autocomplete"] == "{{{prefix}}}"
    body = editors.CONTINUE_OPENAI | {
        "model": model["model"],
        "max_tokens": model["defaultCompletionOptions"]["maxTokens"],
    }
    raw = post(client, path_of(model["apiBase"] + "completions"), body).text
    assert "".join(event["choices"][0]["text"] for event in editors.continue_events(raw))


def test_zed(client):
    settings = json.loads((EDITORS / "zed.json").read_text())["edit_predictions"]
    options = settings[settings["provider"]]
    body = editors.ZED | {"model": options["model"], "max_tokens": options["max_output_tokens"]}
    assert editors.ZedAnswer.model_validate_json(post(client, path_of(options["api_url"]), body).text).choices


@pytest.mark.parametrize("path", sorted(EDITORS.iterdir()), ids=lambda path: path.name)
def test_the_documentation_shows_the_file_as_it_is(path):
    indented = "".join(f"    {line}\n" if line else "\n" for line in path.read_text().splitlines())
    assert indented in (ROOT / "docs" / "editors.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.lua")), ids=lambda path: path.name)
def test_scripts_for_neovim_are_lua(path):
    assert lua_ast.parse(path.read_text()).body.body


def answers(text):
    return [json.loads(line) for line in text.splitlines()]


CHECKS = {
    "drafts.sh": lambda text: len(json.loads(text)["drafts"]) == 3,
    "completions.sh": lambda text: len(json.loads(text)["choices"]) == 3,
    "stream.sh": lambda text: text.strip().endswith("data: [DONE]") and "drafts.snapshot" in text,
    "infill.sh": lambda text: len(json.loads(text)) == 3,
    "side_by_side.sh": lambda text: [len(answer["drafts"]) for answer in answers(text)] == [3, 3],
    "feedback.sh": lambda text: json.loads(text)["counted"] is True,
}


@pytest.mark.parametrize("name", sorted(path.name for path in CURL.iterdir()))
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
@pytest.mark.usefixtures("kept_up_with")
def test_curl_examples_run(engine, name):
    key = "0123456789-0123456789"
    with serving(create_app(Settings(api_keys=f"ann={key}"), engine, model_name="tiny")) as url:
        for given in (key, ""):
            environment = os.environ | {"SUPERDRAFT_URL": url, "SUPERDRAFT_API_KEY": given}
            result = subprocess.run([CURL / name], env=environment, capture_output=True, text=True, check=False)
            if given:
                assert result.returncode == 0, result.stdout + result.stderr
                assert CHECKS[name](result.stdout), result.stdout
            else:
                assert result.returncode != 0  # no key, no answer: the script fails, too
    assert re.match(r"#!/usr/bin/env bash\n# [A-Z]", (CURL / name).read_text())
