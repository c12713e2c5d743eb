"""The command line: its answers, its errors in one line, and what it does not import."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import types

import pytest
import typer
from structlog.testing import capture_logs
from support.engine import FakeEngine
from support.gguf_files import write_gguf
from support.serving import serving
from support.tokenizers import byte_level, sentencepiece_like
from support.waiting import PATIENCE_S

from superdraft.decoding.errors import UnknownModelError
from superdraft.decoding.model import threads
from superdraft.decoding.model.llamacpp import library as llama_library
from superdraft.decoding.model.native import library
from superdraft.server import loading
from superdraft.server.app import create_app
from superdraft.server.cli import complete as cli_complete
from superdraft.server.cli import doctor, lab
from superdraft.server.cli import main as cli
from superdraft.server.cli import serve as cli_serve
from superdraft.server.drafting import DraftingDefaults
from superdraft.server.loading import LoadedService
from superdraft.server.service import NgramModels
from superdraft.server.settings import Settings

GROUPS = {"lab bench": lab.bench, "lab eval": lab.evaluate}


@pytest.fixture(autouse=True)
def _restore_logging():
    import logging

    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line: (exit code, stdout, stderr)."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["superdraft", *args])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        code = caught.value.code
        return (0 if code is None else code), captured.out, captured.err

    return call


@pytest.fixture
def fake_model(monkeypatch):
    engine = FakeEngine()
    asked = []

    def load(settings):
        asked.append(settings)
        return LoadedService(engine, "tiny", NgramModels(), DraftingDefaults(alpha=0.25, tau=0.5))

    monkeypatch.setattr(loading, "load_service", load)
    engine.asked = asked
    return engine


def test_version(run):
    code, out, _ = run("--version")
    assert code == 0
    assert re.fullmatch(r"superdraft \d+\.\d+\.\d+\S*\n", out)


def test_sub_commands_run_their_own_command_line(run, monkeypatch, tmp_path):
    monkeypatch.setenv("SUPERDRAFT_HOME", str(tmp_path))
    code, out, _ = run("models", "list", "--json")
    assert code == 0
    assert json.loads(out)[0]["cached"] is False
    for name in (
        "models",
        "ngram",
        "lab",
        "lab bench",
        "lab bench people",
        "lab eval",
        "lab eval quality",
        "lab tune",
        "serve",
    ):
        code, out, _ = run(*name.split(), "--help")
        assert code == 0
        assert f"superdraft {name}" in out
    assert run("models", "no-such-command")[0] == 2


@pytest.mark.parametrize("command", ["bench step --json", "eval", "tune --prompts x"])
def test_commands_that_moved_say_where(run, command):
    name = command.split()[0]
    code, out, err = run(*command.split())
    assert (code, out, err) == (2, "", f"superdraft: `superdraft {name}` is now `superdraft lab {name}`.\n")
    assert f"│ {name} " not in run("--help")[1]


def test_completion_for_shells_is_offered_once(run):
    assert "--install-completion" in run("--help")[1]
    for name in ("models", "ngram", "config", "keys", "lab", "lab bench", "serve", "doctor"):
        assert "completion for" not in run(*name.split(), "--help")[1]


def test_complete_in_process_prints_the_native_answer(run, fake_model):
    code, out, err = run("complete", "hi", "-k", "2", "-n", "1", "--json", "--ngram-model", "none", "--stop", "x")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert [draft["text"] for draft in answer["drafts"]] == [" red0", " green0"]
    assert set(answer) == {"id", "model", "drafts", "usage", "timings", "warnings"}
    assert fake_model.asked[0].ngram_model == "none"
    params = fake_model.seen[0].params
    assert (params.alpha, params.tau, params.stop) == (0.25, 0.5, ("x",))


def test_complete_shows_a_table(run, fake_model):
    code, out, _ = run("complete", "hi", "-n", "1")
    assert code == 0
    assert all(text in out for text in ("red0", "green0", "blue0", "-0.500", "-1.500"))


def test_complete_asks_a_server(run):
    engine = FakeEngine()
    with serving(create_app(Settings(), engine, model_name="tiny")) as url:
        code, out, _ = run("complete", "hi", "--url", url, "-n", "1", "--json", "--alpha", "0")
        assert code == 0
        assert json.loads(out)["drafts"][0]["text"] == " red0"
        assert engine.seen[0].params.alpha == 0


def test_complete_with_an_api_key(run, tmp_path, monkeypatch):
    key = tmp_path / "key"
    key.write_text("ann-0123456789-0123456789\n")
    settings = Settings(api_keys="ann=ann-0123456789-0123456789")
    with capture_logs(), serving(create_app(settings, FakeEngine(), model_name="tiny")) as url:
        command = ("complete", "hi", "--url", url, "-n", "1", "--json")
        assert run(*command)[0] == 2
        assert run(*command, "--api-key", "ann-0123456789-0123456789")[0] == 0
        code, out, _ = run(*command, "--api-key-file", str(key))
        assert (code, json.loads(out)["drafts"][0]["text"]) == (0, " red0")
        assert "the API key must be a string of printable ASCII" in run(*command, "--api-key", "käse")[2]
        monkeypatch.setenv("SUPERDRAFT_API_KEY", key.read_text())
        code, _, err = run(*command)
        assert (code, err.split(" must ")[0]) == (2, "superdraft: SUPERDRAFT_API_KEY")


def test_complete_reads_standard_input(run, fake_model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("né\n".encode())))
    assert run("complete", "-", "--json")[0] == 0
    assert fake_model.seen[0].token_ids == (ord("n"), ord("é"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("complete", "hi", "-k", "0"), "num_drafts should be greater than or equal to 1, got 0."),
        (("complete", "hi", "--alpha", "2"), "alpha should be less than or equal to 1, got 2."),
        (("complete", "x" * 100), "does not fit"),
        (("complete", "hi\udcff"), "not valid UTF-8"),
        (("complete", "hi", "--url", "http://127.0.0.1:1"), "No server answers at http://127.0.0.1:1"),
        (("serve", "--port", "99999"), "--port should be"),
        (("serve", "--log-level", "loud"), "--log-level should be"),
        (("serve", "--kv-memory", "lots"), "--kv-memory must be a size such as 512MiB or 4GiB"),
        (("serve", "--host", "no.such.host.invalid"), "no.such.host.invalid"),
    ],
)
def test_expected_errors_are_one_line(run, fake_model, args, message):
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert err.startswith("superdraft: ")
    assert err.count("\n") == 1
    assert message in err


def test_port_in_use_is_told_before_the_model_loads(run, fake_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run("serve", "--port", str(port))
    assert code == 2
    assert f"port {port}" in err
    assert fake_model.asked == []


def test_broken_model_is_one_line(run, monkeypatch):
    def load(settings):
        raise UnknownModelError("no model is known as 'x'.")

    monkeypatch.setattr(loading, "load_service", load)
    for args, first in ((("serve", "--port", "0"), "Loading smollm2-135m ...\n"), (("complete", "hi"), "")):
        assert run(*args)[::2] == (2, f"{first}superdraft: no model is known as 'x'.\n")


def test_missing_package_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "structlog", None)
    for name in ("superdraft.server.cli.in_process", "superdraft.server.observe.log_config"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    code, _, err = run("complete", "hi")
    assert code == 2
    assert "pip install '.[server]'" in err


def test_unexpected_errors_are_not_hidden(monkeypatch):
    def broken(settings):
        raise KeyError("a bug")

    monkeypatch.setattr(loading, "load_service", broken)
    monkeypatch.setattr(sys, "argv", ["superdraft", "complete", "hi"])
    with pytest.raises(KeyError):
        cli.main()


def test_control_characters_do_not_reach_the_terminal():
    assert cli_complete.shown("a\x1b[31m\tb\nc é") == "a\\x1b[31m\\tb\nc é"


def test_serving_on_ray_without_ray_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "superdraft.server.ray_replicas.serve", raising=False)
    monkeypatch.setattr(cli_serve.os, "environ", dict(os.environ))
    code, out, err = run("serve", "--ray-replicas", "2", "--port", "0")
    assert (code, out) == (2, "")
    assert "pip install '.[ray]'" in err


def test_traces_without_their_packages_say_what_to_install_before_the_model_is_loaded(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.delitem(sys.modules, "superdraft.server.observe.traces", raising=False)
    code, out, err = run("serve", "--traces", "otlp", "--port", "0", "--model", "no-such-model")
    assert (code, out) == (2, "")
    assert "pip install '.[traces]'" in err
    assert "no-such-model is" not in err


@pytest.mark.parametrize("args", [("--version",), ("--help",), ("complete", "hi", "--url", "http://127.0.0.1:1")])
def test_light_commands_run_with_the_clients_packages_alone(args):
    script = f"""
import sys
for name in ("torch", "transformers", "fastapi", "starlette", "uvicorn", "pydantic_settings", "structlog",
             "kenlm", "numpy", "filelock", "platformdirs", "safetensors", "huggingface_hub"):
    sys.modules[name] = None
sys.argv = ["superdraft", *{args!r}]
from superdraft.server.cli.main import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S)
    assert "needs more packages" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if "--url" in args else 0)


def test_every_setting_is_an_option_of_serve_with_its_description():
    app = typer.Typer(add_completion=False)
    app.command()(cli_serve.main)
    options = {option.name: option for option in typer.main.get_command(app).params}
    # A process's arguments can be read by everyone on the machine, so a secret is no option.
    assert set(options) - {"config"} == set(Settings.model_fields) - {"api_keys"}
    for name in set(options) - {"config"}:
        field, option = Settings.model_fields[name], options[name]
        flag = f"--{name.replace('_', '-')}"
        assert flag in option.opts
        assert option.help.startswith(field.description)
        assert option.default is None  # not given: the environment, the file or the field's own default counts
        assert "[default: " in option.help or field.default is None
        assert bool(option.secondary_opts) == (field.default is True)
        assert field.description[0].isupper()
        assert field.description.endswith(".")


@pytest.mark.parametrize(
    "command",
    [f"{group} {command.name}" for group, app in GROUPS.items() for command in app.registered_commands],
)
def test_every_benchmark_and_evaluation_has_its_command(run, command):
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert f"Usage: superdraft {command} " in out


def test_options_of_serve_show_choices_and_defaults(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    code, out, _ = run("serve", "--help")
    assert code == 0
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith("│ --")}
    assert "debug|info|warning|error" in lines["--log-level"]
    assert "[default: 4GiB]" in lines["--kv-memory"]
    assert "[default: on]" in lines["--token-healing"]
    assert "--no-token-healing" in lines["--token-healing"]
    assert "Repeatable." in lines["--allowed-host,--allowed-hosts"]


def test_help_of_serve_has_a_panel_for_each_subject(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    panels = re.split(r"╭─ ([\w -]+?) ─+╮", run("serve", "--help")[1])
    options = {
        title: set(re.findall(r"^│ (--[a-z-]+)", text, re.MULTILINE))
        for title, text in zip(panels[1::2], panels[2::2], strict=True)
    }
    expected = {"Model", "Drafts", "Network", "Limits", "Replicas", "Logs and configuration"}
    assert set(options) == expected | {"Options"}
    assert options["Options"] == {"--help"}
    assert {"--host", "--port", "--shutdown-grace-s"} <= options["Network"]
    assert {"--config", "--log-level"} <= options["Logs and configuration"]
    assert all(option.startswith("--ray") for option in options["Replicas"])


def test_doctor_says_ok_or_what_to_do(run, monkeypatch):
    def broken(settings):
        raise OSError("disk on fire")

    monkeypatch.setattr(doctor, "check_ngram_model", lambda settings: doctor.Finding(True, "fits"))
    monkeypatch.setattr(doctor, "check_start_token", lambda settings: doctor.Finding(True, "there"))
    monkeypatch.setattr(doctor, "check_model", lambda settings: doctor.Finding(True, "complete"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code, out, _ = run("doctor", "--port", port, "--kv-memory", "1MB")
    assert code == 0, out
    assert len(out.splitlines()) == 11
    assert all(line.startswith("ok ") for line in out.splitlines()[:10])
    assert out.endswith("\nsuperdraft models list says what other models need here.\n")

    monkeypatch.setattr(doctor, "check_model", broken)
    code, out, _ = run("doctor", "--port", port, "--kv-memory", "1MB")
    assert code == 1
    assert "FAIL model         OSError: disk on fire" in out.splitlines()


def test_doctor_tells_the_kernels_and_the_threads_measured(monkeypatch, tmp_path):
    settings = Settings(home=tmp_path)
    monkeypatch.setattr(threads, "processor_name", lambda: "Quick 9000")
    monkeypatch.setattr(threads, "num_cores", lambda: 4)
    monkeypatch.setattr(library, "supported_variants", lambda: ["avx2"])
    monkeypatch.setattr(library, "why_unavailable", lambda: None)
    assert doctor.check_kernels(settings) == doctor.Finding(True, "for avx2")
    results = {"Quick 9000, 4 cores: 30 layers of 576, native": 3, "Slow 1, 4 cores: 30 layers of 576, native": 4}
    threads.threads_file(tmp_path).write_text(json.dumps(results))
    told = "for avx2; 3 of 4 threads are fastest for 30 layers of 576, native"
    assert doctor.check_kernels(settings) == doctor.Finding(True, told)

    monkeypatch.setattr(library, "why_unavailable", lambda: "no C++ compiler was found")
    found = doctor.check_kernels(settings)
    assert not found.ok
    assert found.detail.startswith("no C++ compiler was found; torch's slower ones serve models in int4. Install g++")
    monkeypatch.setattr(library, "supported_variants", list)
    assert doctor.check_kernels(settings) == doctor.Finding(True, "none for Quick 9000; torch's serve models in int4")


def test_doctor_knows_a_running_server(monkeypatch):
    with serving(create_app(Settings(), FakeEngine(), model_name="tiny")) as url:
        port = int(url.rpartition(":")[2])
        for host in ("127.0.0.1", "0.0.0.0"):
            found = doctor.check_port(Settings(host=host, port=port))
            assert (found.ok, found.detail) == (True, f"Superdraft runs at {url} with tiny; it is ready")


def test_doctor_tells_a_missing_model_and_a_taken_port(monkeypatch, tmp_path):
    settings = Settings(home=tmp_path)
    finding = doctor.check_model(settings)
    assert not finding.ok
    assert "superdraft models pull smollm2-135m" in finding.detail
    for check in (doctor.check_ngram_model, doctor.check_start_token):
        assert "superdraft models pull" in check(settings).detail
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        findings = dict(doctor.run_checks(Settings(home=tmp_path, port=port)))
    assert not findings["port"].ok
    assert "--port" in findings["port"].detail
    assert findings["kenlm"].ok


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (byte_level(["ab"]), "<|endoftext|> (0) begins every"),
        (byte_level(["ab"], special=None), "the tokenizer has none"),
        (sentencepiece_like(), "the tokenizer itself begins every text with <s> (1)"),
    ],
)
def test_doctor_shows_the_token_that_begins_a_document(monkeypatch, tokenizer, said):
    monkeypatch.setattr(doctor, "_tokenizer", lambda settings: tokenizer)
    finding = doctor.check_start_token(Settings())
    assert finding.ok
    assert finding.detail.startswith(said)


def test_doctor_counts_the_models_cache_into_the_memory(monkeypatch):
    monkeypatch.setattr(doctor, "free_bytes", lambda: 2_500_000_000)
    small, large = Settings(kv_memory="1GiB", dtype="int4"), Settings(kv_memory="2GiB", dtype="int4")
    finding = doctor.check_memory(small)
    assert finding.ok
    assert "2.5 GB are free, smollm2-135m needs up to 1.7 GB as int4 (estimate" in finding.detail
    finding = doctor.check_memory(large)
    assert not finding.ok
    assert "--kv-memory" in finding.detail
    finding = doctor.check_memory(small.model_copy(update={"model": "qwen2.5-coder-3b"}))
    assert (finding.ok, "qwen2.5-coder-3b needs up to 3.6 GB as int4" in finding.detail) == (False, True)


def test_doctor_takes_the_file_for_llama_cpp(tmp_path, default_gguf):
    assert "with llama.cpp" in doctor.check_memory(Settings(runner="llamacpp")).detail
    assert "with llama.cpp" not in doctor.check_memory(Settings(runner="llamacpp", home=tmp_path)).detail
    path = write_gguf(tmp_path / "tiny.gguf")
    expanded = doctor.check_memory(Settings(model=str(path), runner="torch", dtype="float32")).detail
    assert "as float32" in expanded
    assert "with llama.cpp" in doctor.check_memory(Settings(model=str(path), runner="llamacpp")).detail


def test_doctor_does_not_guess_the_size_of_a_model_it_cannot_see(monkeypatch):
    monkeypatch.setattr(doctor, "free_bytes", lambda: 3 * 10**9)
    finding = doctor.check_memory(Settings(model="some/model"))
    assert (finding.ok, finding.detail) == (
        True,
        "3.0 GB are free; the size of some/model is not known before it is fetched",
    )


def test_doctor_says_whether_llama_cpp_is_installed(monkeypatch):
    llama_library.library.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    finding = doctor.check_llama_cpp(Settings())
    assert (finding.ok, "pip install '.[llamacpp]'" in finding.detail) == (True, True)
    monkeypatch.setattr(doctor, "find_spec", lambda name: name)  # it is there, and does not load
    assert not doctor.check_llama_cpp(Settings()).ok
    llama_library.library.cache_clear()
    monkeypatch.setattr(llama_library, "library", lambda: types.SimpleNamespace(__version__="0.3.99"))
    assert doctor.check_llama_cpp(Settings()).detail == "llama-cpp-python 0.3.99 runs GGUF files as they are"


def test_doctor_knows_the_catalogue(monkeypatch, tmp_path):
    monkeypatch.setattr("superdraft.decoding.loading.source.cached_folder", lambda hub_id: None)
    finding = doctor.check_model(Settings(model="smollm2-360m", home=tmp_path))
    assert "HuggingFaceTB/SmolLM2-360M; it is fetched from the hub" in finding.detail
    assert not doctor.check_start_token(Settings(model="smollm2-360m", home=tmp_path)).ok


def test_try_needs_a_terminal(run):
    assert run("try")[::2] == (2, "superdraft: try needs a terminal; `superdraft complete` works without one.\n")


@pytest.fixture
def in_a_terminal(monkeypatch):
    monkeypatch.setattr("superdraft.server.cli.writing.try_drafts.is_terminal", lambda: True)


def test_try_tells_what_is_wrong_before_it_takes_the_screen(run, in_a_terminal, tmp_path):
    code, _, err = run("try", "--url", "http://127.0.0.1:1")
    assert (code, "No server answers at http://127.0.0.1:1" in err) == (2, True)
    missing = str(tmp_path / "key")
    assert "cannot be read" in run("try", "--api-key-file", missing)[2]
    assert "leave one out" in run("try", "--api-key-file", missing, "--api-key", "x")[2]
    with serving(
        create_app(Settings(api_keys="ann=ann-0123456789-0123456789"), FakeEngine(), model_name="tiny")
    ) as url:
        assert "key" in run("try", "--url", url, "--api-key", "wrong")[2]


def test_try_runs_the_terminal_and_leaves_the_text(run, in_a_terminal, monkeypatch, tmp_path):
    asked = {}

    class Terminal:
        def __init__(self, make_session, text):
            self.session, self.text = make_session(lambda: None), text

        async def run(self):
            asked.update(self.session._request, report=self.session._reports)
            completion = await self.session._client.complete(self.text, num_drafts=1, max_tokens=1)
            return self.text + completion.drafts[0].text + "\x1b"

    monkeypatch.setattr("superdraft.server.cli.writing.terminal.Terminal", Terminal)
    key = tmp_path / "key"
    key.write_text("ann-0123456789-0123456789\n")
    settings = Settings(api_keys="ann=ann-0123456789-0123456789")
    with capture_logs(), serving(create_app(settings, FakeEngine(), model_name="tiny")) as url:
        code, out, _ = run("try", "hi", "--url", url, "--api-key-file", str(key), "-k", "2", "--no-report")
    assert (code, out) == (0, "hi red0\\x1b\n")
    expected = {"num_drafts": 2, "max_tokens": 10, "report": False, "model": "superdraft", "single_line": True}
    assert asked.items() >= expected.items()


def test_try_without_its_package_says_what_to_install(run, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "prompt_toolkit"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    monkeypatch.delitem(sys.modules, "superdraft.server.cli.writing.terminal", raising=False)
    code, _, err = run("try")
    assert code == 2
    assert "pip install '.[try]'" in err
