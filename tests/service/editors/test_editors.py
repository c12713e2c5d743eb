"""Requests of real editors, answered in the form that each of them needs, by a real engine over a tiny model."""

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient
from support import editors
from support.models import STARCODER_FIM, tiny_fim_tokenizer, tiny_model, tiny_tokenizer

from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.loading.loader import LoadedModel
from superdraft.server.app import create_app
from superdraft.server.settings import Settings

_TOKENIZERS = {
    "no fim": tiny_tokenizer,
    "qwen": tiny_fim_tokenizer,
    "starcoder": lambda: tiny_fim_tokenizer(STARCODER_FIM),
}


def make_app(tokenizer, **settings):
    loaded = LoadedModel(tiny_model("llama", vocab_size=320), _TOKENIZERS[tokenizer](), "tiny", Path())
    config = EngineConfig(max_model_len=128, num_slots=4, kv_memory_bytes=2_000_000)
    settings = {"fan_out": 1, "editor_max_tokens": 6, **settings}
    return create_app(Settings(**settings), build_engine(loaded, config), model_name="tiny")


@pytest.fixture(scope="module", params=list(_TOKENIZERS))
def client(request):
    with TestClient(make_app(request.param)) as test_client:
        yield test_client


def post(client, path, body):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response


def test_llama_vim(client):
    answer = editors.LlamaVimAnswer.read(post(client, "/infill", editors.LLAMA_VIM).text)
    assert answer.content


@pytest.mark.parametrize("n_cmpl", [1, 3])
def test_llama_vim_cycles_through_as_many_drafts_as_it_asks_for(client, n_cmpl):
    raw = post(client, "/infill", editors.LLAMA_VIM_SEVERAL | {"n_cmpl": n_cmpl, "t_max_predict_ms": 0}).text
    ring = editors.llama_vim_ring(raw, n_cmpl)
    assert len(ring) == n_cmpl


@pytest.mark.parametrize("body", [editors.LLAMA_VIM_WARM_UP, editors.LLAMA_VSCODE_WARM_UP])
def test_warm_up_runs_the_prompt_only_and_helps_the_next_request(client, body):
    post(client, "/infill", body)
    answer = post(client, "/infill", {**body, "response_fields": None}).json()
    assert (answer["content"], answer["tokens_predicted"]) == ("", 0)
    warm = post(client, "/infill", {**editors.LLAMA_VSCODE, "n_cmpl": 1}).json()
    assert warm["tokens_cached"] > 0
    assert warm["timings"]["prompt_n"] == warm["tokens_evaluated"] - warm["tokens_cached"]


def test_llama_vscode_gets_an_array_of_different_drafts(client):
    answer = editors.LlamaVscode.read(post(client, "/infill", editors.LLAMA_VSCODE).json(), "array")
    assert len(set(answer.contents)) == len(answer.contents) == 3


def test_llama_vscode_gets_an_object_for_one(client):
    body = {**editors.LLAMA_VSCODE, "n_cmpl": 1}
    assert editors.LlamaVscode.read(post(client, "/infill", body).json(), "object").contents
    del body["n_cmpl"]
    assert editors.LlamaVscode.read(post(client, "/infill", body).json(), "object").contents


def test_llama_vscode_shows_errors(client):
    response = client.post("/infill", json={**editors.LLAMA_VSCODE, "n_cmpl": 1000})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (400, 400, "invalid_request_error")
    assert "n_cmpl must be at most 32" in error["message"]
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("body", [editors.CONTINUE_OPENAI, editors.CONTINUE_VLLM])
def test_continue_with_openai_or_vllm(client, body):
    raw = post(client, "/v1/completions", body).text
    assert "".join(event["choices"][0]["text"] for event in editors.continue_events(raw))


def test_continue_with_fim(client):
    events = editors.continue_events(post(client, "/v1/fim/completions", editors.CONTINUE_FIM).text)
    assert "".join(event["choices"][0]["delta"]["content"] for event in events)
    assert [event["choices"][0]["finish_reason"] for event in events] == [
        None,
        events[-1]["choices"][0]["finish_reason"],
    ]
    assert events[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def test_continue_with_llamacpp(client):
    events = editors.continue_events(post(client, "/completion", editors.CONTINUE_LLAMACPP).text)
    assert "".join(event["content"] for event in events)
    assert [event["stop"] for event in events] == [False, True]


def test_zed(client):
    answer = editors.ZedAnswer.model_validate_json(post(client, "/v1/completions", editors.ZED).text)
    assert len(answer.choices) == 1
    assert answer.choices[0].text


def test_tabby_agent(client):
    health = client.get("/v1/health").json()
    assert health["model"]
    assert health["version"]["git_describe"]
    assert client.post("/v1/health").json() == health
    assert isinstance(client.get("/v1beta/server_setting").json()["disable_client_side_telemetry"], bool)
    answer = editors.TabbyAnswer.model_validate_json(post(client, "/v1/completions", editors.TABBY).text)
    assert answer.id.startswith("cmpl-")
    assert [choice.index for choice in answer.choices] == [0]
    post(client, "/v1/events?select_kind=line", {**editors.TABBY_VIEW, "completion_id": answer.id})


def test_tabby_server_as_a_client(client):
    body = {"model": "superdraft", "prompt": "def add", "max_tokens": 4, "stream": True, "temperature": 0.1}
    assert editors.tabby_as_client(post(client, "/v1/completions", body).text)


def test_minuet(client):
    raw = post(client, "/v1/completions", editors.MINUET).text
    assert "".join(event["choices"][0]["text"] for event in editors.continue_events(raw))


def test_cmp_ai(client):
    assert post(client, "/v1/completions", editors.CMP_AI).json()["choices"][0]["text"]


def together(app, path, body, num):
    """The answers to equal requests that are sent at the same time."""

    async def main():
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as http,
        ):
            return await asyncio.gather(*(http.post(path, json=body) for _ in range(num)))

    return asyncio.run(main())


def test_minuets_three_equal_requests_are_one_run_and_three_different_drafts():
    app = make_app("no fim", fan_out=3, default_max_branches=3)
    texts = {
        "".join(event["choices"][0]["text"] for event in editors.continue_events(response.text))
        for response in together(app, "/v1/completions", editors.MINUET, 3)
    }
    assert len(texts) == 3
    assert app.state.service.metrics.total("superdraft_prompt_tokens_total") > 0
    runs = app.state.service.metrics.total("superdraft_queue_seconds_count")
    assert runs == 1


@pytest.mark.parametrize(
    ("path", "body", "read"),
    [
        ("/infill", {**editors.LLAMA_VSCODE, "n_cmpl": 1}, lambda answer: answer["content"]),
        ("/completion", {"prompt": "def add", "n_predict": 5}, lambda answer: answer["content"]),
        ("/v1/completions", editors.TABBY_MANUAL, lambda answer: answer["choices"][0]["text"]),
        (
            "/v1/fim/completions",
            {"prompt": "a", "suffix": "b"},
            lambda answer: answer["choices"][0]["message"]["content"],
        ),
    ],
)
def test_equal_requests_get_different_drafts_on_every_editors_route(path, body, read):
    app = make_app("qwen", fan_out=3)
    texts = [read(response.json()) for response in together(app, path, body, 3)]
    assert len(set(texts)) == 3
    assert app.state.service.metrics.total("superdraft_queue_seconds_count") == 1
