"""The benchmarks of latency and starts."""

import json
import mmap
import os
import sys
import types
from contextlib import contextmanager

import httpx
import pytest
from support.engine import FakeEngine
from support.models import tiny_model_folder
from support.serving import serving

from superdraft.benchmarks import summary
from superdraft.benchmarks.over_http import latency, local_server, startup
from superdraft.server.app import create_app
from superdraft.server.errors import CommandError
from superdraft.server.settings import Settings


@pytest.fixture
def engine():
    return FakeEngine(max_model_len=2000)


@pytest.fixture
def fake_server(engine, monkeypatch):
    """`local_server` with a fake engine behind it; the options that it was asked for."""
    asked = []

    @contextmanager
    def fake_local_server(options):
        asked.append(options)
        with serving(create_app(Settings(), engine, model_name="tiny")) as url:
            yield url

    monkeypatch.setattr(latency, "local_server", fake_local_server)
    return asked


def report_in(output):
    """The report after the lines that a server in this process logs."""
    return json.loads(output[output.index("{\n") :])


def test_percentiles_and_ratios():
    assert summary.percentile([7.0], 95) == 7.0
    assert summary.percentile([1.0, 2.0, 3.0], 50) == 2.0
    # Round by round: the machine was twice as slow in the second one.
    assert summary.ratio([2.0, 4.0, 3.0], [1.0, 2.0, 1.0]) == {"median": 2.0, "p25": 2.0, "p75": 2.5}


def test_all_contenders_answer_every_prompt_and_the_first_rounds_do_not_count(monkeypatch):
    seen, now_s = [], [0.0]
    clock = types.SimpleNamespace(perf_counter=lambda: now_s[0], sleep=lambda _: None)
    monkeypatch.setattr(latency, "time", clock)

    def contender(name, seconds):
        def draft(text, token_ids):
            seen.append((name, text, token_ids))
            now_s[0] += seconds
            return 30

        return draft

    prompts = [(str(number), [number]) for number in range(latency.WARM_UP_ROUNDS + 4)]
    contenders = {latency.OURS: contender("ours", 0.01), "theirs": contender("theirs", 0.03)}
    times_ms, num_tokens = latency.take_turns(contenders, prompts)
    assert {name: len(times) for name, times in times_ms.items()} == {latency.OURS: 4, "theirs": 4}
    assert num_tokens == {latency.OURS: 30, "theirs": 30}
    assert sorted(seen) == sorted((name, *prompt) for prompt in prompts for name in ("ours", "theirs"))
    assert summary.ratio(times_ms["theirs"], times_ms[latency.OURS])["median"] == pytest.approx(3)


def test_latency_is_measured_over_http(fake_server, monkeypatch, capsys):
    monkeypatch.setattr(latency, "PAUSE_S", 0)
    prompts = [(f"prompt {number}", [number]) for number in range(latency.WARM_UP_ROUNDS + 2)]
    monkeypatch.setattr(latency, "cut_prompts", lambda model, count: prompts[:count])
    options = {"model": "tiny", "num_drafts": 3, "rounds": 2, "peer": ["none"], "peer_threads": 2, "num_threads": 1}
    latency.main(**options, as_json=True)
    ours, published = report_in(capsys.readouterr().out)["rows"]
    assert fake_server == [["--model", "tiny", "--num-threads", "1"]]
    assert (ours["contender"], ours["tokens"], ours["to_ours"]["median"]) == (latency.OURS, 30, 1.0)
    assert (published["contender"], published["tokens"]) == (latency.PUBLISHED, 30)
    latency.main(**options, as_json=False)
    assert "to ours" in capsys.readouterr().out


def test_prompts_have_the_tokens_that_they_are_said_to_have(default_gguf):
    prompts = latency.cut_prompts("smollm2-135m", 60)
    assert len({text for text, _ in prompts}) == 60
    assert {len(token_ids) for _, token_ids in prompts} == {latency.PROMPT_TOKENS}
    with pytest.raises(CommandError, match="100000 are wanted"):
        latency.cut_prompts("smollm2-135m", 100_000)


def test_transformers_makes_all_its_tokens(tmp_path):
    draft = latency._transformers(str(tiny_model_folder(tmp_path, "llama")), "float32", 1, 3)
    assert draft("", [5, 6, 7]) == 3 * latency.NEW_TOKENS


def test_other_peers_are_servers():
    with pytest.raises(CommandError, match="KIND=URL with KIND one of llamacpp"):
        latency._peers(["vllm"], "smollm2-135m", 3, 2)
    assert latency._peers(["none"], "smollm2-135m", 3, 2) == {}
    assert list(latency._peers(["llamacpp=http://x:1"], "", 3, 2)) == ["llama.cpp's server at http://x:1, one draft"]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_and_time_of_a_process():
    found = startup.memory_mb(os.getpid())
    assert found["rss_mb"] >= found["pss_mb"] > 1
    before = startup.processor_seconds(os.getpid())
    held = mmap.mmap(-1, 50_000_000)  # new pages: malloc may have as many free ones from earlier tests
    held.write(os.urandom(1000) * 50_000)
    assert startup.memory_mb(os.getpid())["rss_mb"] - found["rss_mb"] > 0.8 * len(held) / 1e6
    while startup.processor_seconds(os.getpid()) == before:
        sum(range(10_000))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_start_is_over_when_the_server_is_ready(engine, monkeypatch, tmp_path, capsys):
    class Process:
        pid = os.getpid()
        returncode = 3

        def poll(self):
            return self.code

    with serving(create_app(Settings(), engine, model_name="tiny")) as url:
        port = int(url.rpartition(":")[2])
        log = tmp_path / "log"
        monkeypatch.setattr(local_server.subprocess, "Popen", lambda *_, **__: process)
        process = Process()
        process.code = None

        @contextmanager
        def starting_server(options):
            assert options[-2:] == ["--dtype", "int4"]
            server = local_server.LocalServer(options, log)
            log.write_text("model not found")
            yield server

        answers = iter([False, False, True] * 3)  # of `/ready`, in each of three starts
        is_ready = startup._is_ready
        monkeypatch.setattr(startup, "_is_ready", lambda http: is_ready(http) and next(answers))
        monkeypatch.setattr(startup, "starting_server", starting_server)
        monkeypatch.setattr(startup, "_free_port", lambda: port)
        monkeypatch.setattr(startup, "IDLE_S", 0)
        monkeypatch.setattr(startup, "NUM_REQUESTS", 5)
        startup.main(model="tiny", runs=2, dtype="int4", as_json=True)
        rows = {row["measure"]: row for row in report_in(capsys.readouterr().out)["rows"]}
        assert 0 < rows["ready_s"]["min"] <= rows["ready_s"]["median"] <= rows["ready_s"]["max"]
        assert {"processor_s", "idle_rss_mb", "idle_pss_mb", "used_rss_mb"} <= set(rows)
        assert len(engine.seen) == 3 * startup.NUM_REQUESTS
    process.code = 3
    with pytest.raises(CommandError, match="ended with code 3: model not found"):
        startup.start_once(["--dtype", "int4"])


def test_a_server_that_does_not_start_in_time_is_quoted_in_whole_lines(monkeypatch, tmp_path):
    monkeypatch.setattr(local_server.subprocess, "Popen", lambda *_, **__: types.SimpleNamespace(poll=lambda: None))
    monkeypatch.setattr(local_server, "START_TIMEOUT_S", 0)
    server = local_server.LocalServer([], tmp_path / "log")
    lines = [f"line {number}: {'x' * 300}" for number in range(9)]
    server._log.write_text("\n".join(lines) + "\n")
    with pytest.raises(CommandError, match="did not start within 0 s") as caught:
        server.check_running()
    assert str(caught.value).splitlines()[1:] == lines[-local_server.LOG_LINES :]


def test_a_server_that_is_not_there_is_not_ready():
    with httpx.Client(base_url=f"http://127.0.0.1:{startup._free_port()}") as http:
        assert not startup._is_ready(http)
