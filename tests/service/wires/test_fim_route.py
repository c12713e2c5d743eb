"""`POST /v1/fim/completions` over a fake engine."""

import pytest
from support.sse import parsed

from superdraft.server.wires.editors import NOT_SEEN

PATH = "/v1/fim/completions"


def ask(client, **body):
    response = client.post(PATH, json={"prompt": "hi", "suffix": "\nend", "max_tokens": 2, **body})
    assert response.status_code == 200, response.text
    return response


def test_answer_has_the_shape_of_a_chat(client):
    answer = ask(client).json()
    assert answer.pop("id").startswith("fim-")
    assert isinstance(answer.pop("created"), int)
    message = {"role": "assistant", "content": " red0 red1"}
    assert answer == {
        "object": "chat.completion",
        "model": "tiny",
        "choices": [{"index": 0, "message": message, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
        "warnings": [NOT_SEEN],
    }


def test_every_chunk_has_a_delta_with_content(client):
    response = ask(client, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    text, end = parsed(response.content)
    assert text["object"] == end["object"] == "chat.completion.chunk"
    assert text["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": " red0 red1"}, "finish_reason": None}
    ]
    assert end["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": "length"}]
    assert end["usage"]["total_tokens"] == 4


def test_long_answers_are_cut_to_the_servers_limit(make_client, engine):
    client = make_client(editor_max_tokens=5)
    ask(client, max_tokens=4096)
    ask(client, max_tokens=None)
    assert [job.params.max_tokens for job in engine.seen] == [5, 5]


def test_model_alias_chooses_the_strategy(client, engine):
    ask(client, model="tiny:sample", temperature=3, random_seed=7)
    params = engine.seen[0].params
    assert (params.strategy, params.temperature, params.seed) == ("sample", 2.0, 7)


def test_other_model_is_not_found(client):
    response = client.post(PATH, json={"prompt": "hi", "model": "codestral-latest"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_text_that_the_suffix_has_is_cut(client):
    choice = ask(client, suffix=" red1", stop=[""]).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (" red0", "stop")


@pytest.mark.parametrize("body", [{"prompt": None}, {"prompt": [1]}, {"suffix": 1}, {"max_tokens": -1}, {"stop": 3}])
def test_wrong_fields_are_refused(client, body):
    response = client.post(PATH, json={"prompt": "hi", **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == next(iter(body))
