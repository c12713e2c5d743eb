"""Limits of a caller, over HTTP."""

import threading

import pytest
from support.waiting import PATIENCE_S, eventually

from superdraft.server.edge.api_keys import add_key

BODY = {"prompt": "hi", "max_tokens": 1}


def test_rate_limit_is_each_keys_own_and_a_key_may_have_another(make_client, tmp_path):
    file = tmp_path / "keys.toml"
    ann, bob = (add_key(file, name, ["complete"]) for name in ("ann", "bob"))
    file.write_text(file.read_text().rstrip() + '\nrate_limit = "4/minute"\n')  # bob's table is the last
    client = make_client(api_keys_file=file, rate_limit="2/minute")

    def statuses(key, count):
        headers = {"authorization": f"Bearer {key}"}
        return [client.post("/v1/drafts", json=BODY, headers=headers).status_code for _ in range(count)]

    assert statuses(ann, 3) == [200, 200, 429]
    assert statuses(bob, 5) == [200] * 4 + [429]
    assert statuses("wrong", 3) == [401] * 3


@pytest.mark.parametrize("path", ["/v1/completions", "/infill"])
def test_refusal_says_when_to_come_back_and_not_to_retry(make_client, path):
    client = make_client(rate_limit="1/day")
    client.post("/v1/drafts", json=BODY)
    answer = client.post(path, json=BODY)
    assert answer.status_code == 429
    assert answer.headers["x-should-retry"] == "false"
    assert 0 < int(answer.headers["retry-after-ms"]) <= 86_400_000
    assert 1 <= int(answer.headers["retry-after"]) <= 86_400
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert client.get("/health").status_code == client.get("/metrics").status_code == 200  # these are not counted
    assert 'superdraft_shed_total{reason="rate_limit"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("stream", [False, True])
def test_concurrency_counts_a_request_until_its_answer_is_over(make_client, engine, stepwise, stream):
    client = make_client(max_concurrent=1)
    statuses = []

    def ask():
        body = {"prompt": "hi", "max_tokens": 20, "stream": stream}
        statuses.append(client.post("/v1/drafts", json=body).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    assert eventually(lambda: engine.seen)
    second = client.post("/v1/drafts", json=BODY)
    assert (second.status_code, second.json()["error"]["code"]) == (429, "too_many_concurrent_requests")
    stepwise.release(100)
    thread.join(PATIENCE_S)
    assert statuses == [200]
    assert client.post("/v1/drafts", json=BODY).status_code == 200
