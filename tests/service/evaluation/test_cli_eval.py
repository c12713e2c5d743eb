"""`superdraft lab eval` and `superdraft lab tune` on a tiny model, from the command line to their files."""

import json
import sys

import pytest
from support.models import tiny_model_folder
from support.ngram import TINY_ARPA, tiny_manifest
from support.serving import serving

from superdraft.ngram_models.store.manifest import BINARY_FILE, Manifest, TokenizerIdentity, Tuning, file_sha256
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint
from superdraft.server.cli import main as cli
from superdraft.server.serving import load_app
from superdraft.server.settings import Settings

FIGURES = {
    "perplexity_best",
    "perplexity_mean",
    "perplexity_by_rank/1",
    "keystroke_savings",
    "distinct_starts",
    "self_bleu",
    "mean_words",
    "forward_rows",
    *(f"exact_match_any/{n}" for n in (1, 2, 3, 4, 5)),
}
TEXTS = (
    ("Thank you for your", "email. I will get back to you"),
    ("The quick brown fox", "jumps over the lazy dog"),
    ("Please find the report", "attached; the numbers for 2024 are on page 3"),
    ("We're meeting at noon,", "aren't we? It's the café on the corner"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_model_folder(tmp_path_factory.mktemp("models"), "llama"))


@pytest.fixture
def files(tmp_path):
    """Two domains."""
    for domain, texts in (("mail", TEXTS[:2]), ("chat", TEXTS[2:])):
        rows = [
            {"id": f"{domain}-{i}", "domain": domain, "prompt": prompt, "reference": reference}
            for i, (prompt, reference) in enumerate(texts)
        ]
        (tmp_path / f"{domain}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [
        {"question": "Who sings?", "answers": ["Poison"]},
        {"question": "Where is it?", "answers": ["Rome", "Roma"]},
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, model):
    """Run the command line with its output in a folder: (exit code, results, standard error)."""
    monkeypatch.setenv("SUPERDRAFT_HOME", str(tmp_path / "home"))

    def call(*args, output=tmp_path / "out", result="results.json"):
        command = ["superdraft", *args, "--model", model, "--dtype", "float32", "-o", str(output)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        path = output / result
        results = json.loads(path.read_text()) if path.exists() else None
        return caught.value.code or 0, results, capsys.readouterr().err

    return call


@pytest.fixture
def ngram_model(tmp_path, model):
    """An n-gram model for the tiny model's tokenizer; it knows only a few of its tokens."""
    from transformers import AutoTokenizer

    vocabulary = AutoTokenizer.from_pretrained(model).get_vocab()
    folder = tmp_path / "home" / "ngram" / "mine"
    folder.mkdir(parents=True)
    binary = folder / BINARY_FILE
    binary.write_text(TINY_ARPA, encoding="ascii")
    identity = TokenizerIdentity("tiny", tokenizer_fingerprint(vocabulary), 300, (0,))
    manifest = tiny_manifest(
        name="mine", tokenizer=identity, binary_sha256=file_sha256(binary), binary_bytes=binary.stat().st_size
    )
    manifest.write(folder)
    return folder


def prompt_files(folder):
    return "--prompts", str(folder / "mail.jsonl"), str(folder / "chat.jsonl")


def value(found, name):
    """A figure of results.json without its bounds."""
    return found["figures"][name] and found["figures"][name][0]


def test_quality_writes_every_figure_with_its_bounds(run, files):
    # Without healing, whose steps would be counted too.
    decoders = {name: name for name in ("greedy", "paper", "nucleus")}
    decoders["both"] = "nucleus+superposed branches=2 k=2"
    flags = [part for name, kind in decoders.items() for part in ("--decoder", f"{name}: {kind} healing=off")]
    code, results, err = run("lab", "eval", "quality", *prompt_files(files), *flags, "-n", "5", "--ngram", "none")
    assert (code, err) == (0, "")
    (found,) = results["groups"].values()
    assert list(found) == ["greedy", "paper", "nucleus", "both"]
    for one in found.values():
        assert one["figures"].keys() >= FIGURES
        assert one["n"] == 4
        mean, low, high = one["figures"]["perplexity_mean"]
        assert 1 <= low <= mean <= high
        assert value(one, "perplexity_best") <= mean
        assert set(one["by_domain"]) == {"mail", "chat"}
    rows = {name: value(one, "forward_rows") for name, one in found.items()}
    assert rows == {"greedy": 1, "paper": 1, "nucleus": 3, "both": 2}
    assert value(found["paper"], "perplexity_best") <= value(found["paper"], "perplexity_by_rank/1")
    assert found["greedy"]["figures"]["self_bleu"] is None
    assert found["paper"]["difference_to_baseline"]["words_right"][0] == pytest.approx(
        value(found["paper"], "words_right") - value(found["greedy"], "words_right")
    )
    table = (files / "out" / "results.md").read_text()
    assert "|  | greedy | paper | nucleus | both |" in table
    assert "| exact_match_any/1 | greedy |" in table  # by domain
    plot = (files / "out" / "rows_word_ends.svg").read_text()
    assert all(f">{name}<" in plot for name in decoders)  # texts, which a page can show in its own size


def test_what_is_done_is_not_done_again(run, files, monkeypatch):
    from superdraft.evaluation.decoders.decoders import EngineDecoder

    asked = []
    decode = EngineDecoder.decode

    def count(self, asks):
        asked.append(len(asks))
        return decode(self, asks)

    def quality(*args):
        asked.clear()
        command = ("lab", "eval", "quality", *prompt_files(files), "--decoder", "paper", "-n", "4", "--ngram", "none")
        _, results, _ = run(*command, "--typed-words", "1", *args)
        return results["groups"]["word ends"]["paper"]

    monkeypatch.setattr(EngineDecoder, "decode", count)
    first = quality("--limit", "3", "--evaluator", "none")
    assert asked[0] == 3
    assert "perplexity_by_rank/1" not in first["figures"]
    second = quality("--evaluator", "none")
    assert asked[0] == 1
    assert second["n"] == 4
    third = quality()  # judged, so its records are others
    assert value(third, "perplexity_mean") > 1
    assert sum(asked) >= 4
    assert quality()["figures"] == third["figures"]
    assert sum(asked) == 0
    quality("--typed-words", "2")
    assert sum(asked) >= 4  # other settings have records of their own


def test_questions(run, files):
    code, results, _ = run("lab", "eval", "qa", "--prompts", str(files / "questions.jsonl"), "-n", "4")
    assert code == 0
    served = results["groups"]["questions"]["served"]
    assert served["n"] == 2
    shares = [value(served, f"precision/{n}") for n in (1, 2, 3)]
    assert shares == sorted(shares)
    assert served["settings"]["params"]["selection"] == "distinct"


def test_tuning_writes_its_choice_where_it_is_asked_to(run, files, ngram_model):
    options = ("--alpha", "0.3", "--tau", "0.1,1", "-m", "4", "-n", "4", "-k", "2", "--first-prompts", "2")
    code, results, err = run("lab", "tune", *prompt_files(files), "--ngram", "mine", *options, result="tuning.json")
    assert (code, err) == (0, "")
    assert Manifest.read(ngram_model).tuning is None
    tried = {(row["alpha"], row["tau"], row["candidates_per_draft"]) for row in results["trials"]}
    assert tried == {(0.0, 0.1, 4), (0.0, 1.0, 4), (0.3, 0.1, 4), (0.3, 1.0, 4), (0.54, 0.06, 4)}
    assert results["num_prompts"] == 4
    assert "| best minus alpha=0 " in (files / "out" / "tuning.md").read_text()
    code, results, _ = run(
        "lab", "tune", *prompt_files(files), "--ngram", "mine", *options, "--write", result="tuning.json"
    )
    assert code == 0
    assert Manifest.read(ngram_model).tuning == Tuning(**results["choice"])


def test_completion_reports_word_ends_and_inside_words(run, files, tmp_path):
    rows = [{"prompt": "Please find the rep", "reference": "ort attached", "typed": "rep", "domain": "mail"}]
    (tmp_path / "mid.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, results, err = run(
        *("lab", "eval", "completion", *prompt_files(files), str(tmp_path / "mid.jsonl")),
        *("--decoder", "served", "--decoder", "unhealed: served healing=off", "-n", "4"),
    )
    assert (code, err) == (0, "")
    assert list(results["groups"]) == ["word ends", "inside words"]
    ends, inside = results["groups"].values()
    assert list(ends) == list(inside) == ["served", "unhealed"]
    assert (ends["served"]["n"], inside["served"]["n"]) == (4, 1)
    assert value(ends["served"], "keystroke_savings") is not None
    assert value(inside["served"], "request_ms") > 0
    assert ends["served"]["settings"]["params"]["token_healing"]
    assert not ends["unhealed"]["settings"]["params"]["token_healing"]
    table = (files / "out" / "results.md").read_text()
    assert "## Word ends: 4 prompts" in table
    assert (files / "out" / "rows_inside_words.svg").exists()


def test_completion_of_a_running_server_equals_that_in_the_process(run, files, model, monkeypatch):
    settings = Settings(model=model, dtype="float32", device="cpu", num_threads=1, max_model_len=128)
    app = load_app(settings)
    with serving(app) as url:
        command = ("lab", "eval", "completion", *prompt_files(files), "-n", "4", "--peer", f"superdraft={url}")
        code, results, _ = run(*command)
    assert code == 0
    served, peer = results["groups"]["word ends"].values()
    del served["figures"]["request_ms"], peer["figures"]["request_ms"]
    assert served["figures"] == peer["figures"]
    assert served["figures"].keys() >= {"words_right", "keystroke_savings"}
    assert peer["settings"]["peer"] == "superdraft"
    code, _, err = run(*command, output=files / "gone")  # nobody is there any more
    assert code == 2
    assert "--peer superdraft=" in err
    assert err.count("\n") == 1


def test_texts_of_a_running_server_equal_those_in_the_process(run, files, model):
    rows = [{"kind": "mail", "place": "inside a word", "text": text} for text in ("Please conf", "Go on |", "It is ")]
    (files / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = Settings(model=model, dtype="float32", device="cpu", num_threads=1, max_model_len=128)
    app = load_app(settings)
    with serving(app) as url:
        command = ("lab", "eval", "texts", "--texts", str(files / "texts.jsonl"), "--peer", f"superdraft={url}")
        code, _, err = run(*command, "--decoder", "here: served", output=files / "drafts.md")
    assert (code, err) == (0, "")
    lines = (files / "drafts.md").read_text().splitlines()
    assert lines[:3] == ["## Mail", "", f"|  | text | here | superdraft at {url} |"]
    cells = [line.split(" | ") for line in lines[4:]]
    assert [row[1] for row in cells] == ["`Please conf`", "<code>Go on &#124;</code>", "`It is␣`"]
    assert all(" %" in row[2] and row[2] == row[3].removesuffix(" |") for row in cells)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("lab", "eval", "quality"), "--prompts FILE is missing"),
        (("lab", "eval", "quality", "--prompts", "none.jsonl"), "none.jsonl cannot be read"),
        (
            ("lab", "eval", "quality", "--prompts", "x", "--decoder", "magic"),
            "'magic' is not a decoder; choose one of served, paper",
        ),
        (
            ("lab", "eval", "quality", "--prompts", "x", "--decoder", "greedy", "--decoder", "greedy"),
            "Two decoders are called",
        ),
        (
            ("lab", "eval", "completion", "--prompts", "x", "--peer", "ftp://x"),
            "--peer must be KIND=URL with KIND one of superdraft",
        ),
        (
            ("lab", "eval", "completion", "--prompts", "x", "--decoder", "none"),
            "--decoder none leaves nothing to measure",
        ),
        (("lab", "eval", "texts", "--peer", "before=x"), "--peer must be KIND=URL"),
        (("lab", "eval", "texts", "--texts", "none.jsonl"), "none.jsonl cannot be read"),
        (("lab", "tune", "--prompts", "x", "--objective", "fame"), "--objective must be one of words_right"),
        (("lab", "tune", "--prompts", "x", "--tau", "hot"), "--tau must be numbers"),
    ],
)
def test_expected_errors_are_one_line(run, args, message):
    code, results, err = run(*args)
    assert (code, results) == (2, None)
    assert err.count("\n") == 1
    assert message in err


def test_tuning_without_an_ngram_model(run, files):
    code, _, err = run("lab", "tune", *prompt_files(files), "--ngram", "none")
    assert code == 2
    assert "is not an n-gram model that can be tuned" in err
