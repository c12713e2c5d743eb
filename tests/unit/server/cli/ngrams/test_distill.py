"""`superdraft ngram distill` with a tiny model: from the model to the n-gram model, killed and taken up again."""

import os
import signal
import subprocess
import sys

import pytest
from support.models import tiny_model_folder, tiny_tokenizer
from support.ngram import write_fake_tools
from support.waiting import eventually
from typer.testing import CliRunner

from superdraft.decoding.distillation.sampler import SamplerConfig, TextSampler
from superdraft.decoding.loading.loader import ModelOptions, load_model
from superdraft.ngram_models.errors import CorpusError, NgramBuildError
from superdraft.ngram_models.store.manifest import Manifest
from superdraft.server.cli.ngrams.commands import app
from superdraft.server.errors import CommandError

# Runs the command and waits for ever when the third shard is written but does not have its name yet.
STOPPING = """
import sys, time
from pathlib import Path
from superdraft.ngram_models.building import sampled_corpus
from superdraft.server.cli.ngrams.commands import app

rename = sampled_corpus.rename_durably
def stop(partial, final):
    if final.name.endswith("-000002.u32"):
        Path(sys.argv[1]).touch()
        time.sleep(600)
    return rename(partial, final)
sampled_corpus.rename_durably = stop
app(sys.argv[2:])
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERDRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture
def tools(tmp_path):
    return write_fake_tools(tmp_path / "bin")


def arguments(model, tools, *options):
    sampling = ["--rows", 9, "--row-tokens", 12, "--batch", 2, "--device", "cpu", "--dtype", "float32"]
    return [str(part) for part in ["distill", model, "-o", "mine", "--order", 3, "--tools", tools, *sampling, *options]]


def run(model, tools, *options):
    result = CliRunner().invoke(app, arguments(model, tools, *options))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def sampled(monkeypatch):
    """The parts that were sampled, in order."""
    parts = []
    sample = TextSampler.sample

    def noted(self, seed, part, on_tokens):
        parts.append(part)
        return sample(self, seed, part, on_tokens)

    monkeypatch.setattr(TextSampler, "sample", noted)
    return parts


def test_the_model_is_built_from_the_first_rows_that_the_sampler_gives(model, tools, home):
    run(model, tools, "--seed", 5, "--licence", "MIT", "--prune", "0 0 1")
    manifest = Manifest.read(home / "ngram" / "mine")
    assert manifest.corpus.description == "9 samples of 12 tokens from llama at temperature 1, top-p 0.95, seed 5"
    assert manifest.corpus.num_tokens == 9 * 12
    assert (manifest.licence, manifest.tokenizer.name, manifest.prune) == ("MIT", "llama", (0, 0, 1))
    sampler = TextSampler(load_model(ModelOptions(model=str(model), dtype="float32")), SamplerConfig(2, 12))
    rows = [row for part in range(5) for row in sampler.sample(5, part).tolist()][:9]
    expected = " ".join(str(token_id) for row in rows for token_id in row if token_id)
    learnt = [word for word in (tools / "stdin.txt").read_text().split() if word != "<cut>"]
    assert " ".join(learnt) == expected
    assert [path.name for path in (home / "ngram").iterdir()] == ["mine"]


def test_killed_and_started_again_gives_the_same_corpus(model, tools, home, tmp_path, sampled):
    run(model, tools, "--seed", 3)
    uninterrupted = (tools / "stdin.txt").read_text()
    assert sampled == [0, 1, 2, 3, 4]
    (tools / "stdin.txt").unlink()
    again = arguments(model, tools, "--seed", 3)
    stopped = tmp_path / "stopped"
    process = subprocess.Popen([sys.executable, "-c", STOPPING, str(stopped), *again], stderr=subprocess.DEVNULL)
    try:
        assert eventually(lambda: stopped.exists() or process.poll() is not None)
        assert process.poll() is None
        with pytest.raises(CorpusError, match="Another process is sampling"):
            run(model, tools, "--seed", 3)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert list((home / "ngram" / ".mine.samples").glob("shard-*-000002.partial"))
    sampled.clear()
    result = run(model, tools, "--seed", 3)
    assert sampled == [2, 3, 4]
    assert "Continuing: 2 of 5 shards exist." in result.stderr
    assert (tools / "stdin.txt").read_text() == uninterrupted


def test_kept_samples_can_be_added_to_and_other_settings_start_clean(model, tools, tmp_path, sampled):
    work = ["--work", tmp_path / "samples"]
    run(model, tools, *work)
    sampled.clear()
    run(model, tools, *work, "--rows", 14)
    assert sampled == [5, 6]
    sampled.clear()
    result = run(model, tools, *work, "--temperature", "0.5")
    assert sampled == [0, 1, 2, 3, 4]
    assert "7 finished shards are removed" in result.stderr
    assert len(list((tmp_path / "samples").glob("shard-*"))) == 5


def test_another_model_of_the_same_name_starts_clean(model, tools, tmp_path, sampled):
    work = ["--work", tmp_path / "samples"]
    run(model, tools, *work)
    sampled.clear()
    run(tiny_model_folder(tmp_path, "llama", seed=1), tools, *work)
    assert sampled == [0, 1, 2, 3, 4]


def test_texts_begin_with_the_prompts(model, tools, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Thank you\n\n  Please find \n")
    run(model, tools, "--prompts", prompts, "--row-tokens", 30)
    tokenizer = tiny_tokenizer()
    lines = (tools / "stdin.txt").read_text().splitlines()
    texts = [tokenizer.decode([int(word) for word in line.split() if word != "<cut>"]) for line in lines]
    assert {text.startswith("Thank you") for text in texts} == {True, False}
    assert all(text.startswith(("Thank you", "Please find")) for text in texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prune", "0 x"], "integers separated by spaces, got '0 x'."),
        (["--order", "7"], "between 2 and 6, got 7."),
        (["--dtype", "int4"], "choose another --dtype"),
        (["--prompts", "nowhere.txt"], "nowhere.txt: No such file"),
        (["--prompts", "EMPTY"], "holds no text"),
        (["--prompts", "LONG"], "LONG, line 2: 20 tokens leave no room in rows of 12."),
        (["-o", "OTHER"], "exists and is not an n-gram model"),
    ],
)
def test_wrong_options_are_told_and_nothing_is_left(model, tools, home, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").write_text("\n \n")
    (tmp_path / "LONG").write_text("a\n" + "é%7" * 5 + "\n")
    (tmp_path / "OTHER").mkdir()
    (tmp_path / "OTHER" / "thesis.txt").touch()
    options = [str(tmp_path / "OTHER") if part == "OTHER" else part for part in options]
    with pytest.raises((CommandError, NgramBuildError)) as caught:
        run(model, tools, *options)
    assert message in str(caught.value)
    assert not list(home.rglob("*shard*"))


@pytest.mark.parametrize("options", [["--top-p", "0"], ["--temperature", "2.1"], ["--row-tokens", "0"]])
def test_values_out_of_range_are_refused_before_the_model_is_loaded(tools, options):
    result = CliRunner().invoke(app, arguments("no-such-model", tools, *options))
    assert result.exit_code == 2
    assert f"Invalid value for '{options[0]}'" in result.output
