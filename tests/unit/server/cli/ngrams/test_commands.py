import json
import sys
import types

import pytest
from support.ngram import write_fake_tools, write_tiny_model
from typer.testing import CliRunner

from superdraft.decoding.errors import SuperdraftError, UnknownModelError
from superdraft.ngram_models.errors import NgramModelError
from superdraft.ngram_models.store.manifest import Manifest
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint
from superdraft.server.cli.main import EXPECTED_ERROR_CODE
from superdraft.server.cli.ngrams.commands import app
from superdraft.server.errors import CommandError


class CharacterTokenizer:
    """As much of a transformers tokenizer as building needs: `a` is 3, `b` is 4 and so on."""

    eos_token_id = 0
    unk_token_id = None
    all_special_ids = (0, 2)
    added_tokens_decoder = {}  # noqa: RUF012

    def get_vocab(self):
        return {"<|im_end|>": 0, "<|endoftext|>": 2, **{chr(ord("a") + i): 3 + i for i in range(5)}}

    def __len__(self):
        return len(self.get_vocab())

    def convert_tokens_to_ids(self, token):
        return self.get_vocab().get(token)

    def __call__(self, texts, *, add_special_tokens, verbose):
        assert not add_special_tokens
        return {"input_ids": [[self.get_vocab()[char] for char in text] for text in texts]}

    def decode(self, token_ids):
        return "".join(chr(ord("a") + token_id - 3) for token_id in token_ids)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERDRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


@pytest.fixture
def tools(tmp_path):
    return write_fake_tools(tmp_path / "bin")


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("ab\n\nabc\n\nba\n")
    return path


@pytest.fixture
def model_loader(monkeypatch):
    """Stands in for the module that loads language models, so that none is needed here."""

    def load_tokenizer(spec):
        if spec != "toy":
            raise UnknownModelError(f"There is no model {spec!r}.")
        return CharacterTokenizer()

    module = types.ModuleType("superdraft.decoding.loading.loader")
    module.load_tokenizer = load_tokenizer
    monkeypatch.setitem(sys.modules, module.__name__, module)


def run(*arguments):
    """Run a command as `superdraft` does, which makes one line of expected errors."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(result.exception, CommandError | NgramModelError | SuperdraftError):
        return types.SimpleNamespace(exit_code=EXPECTED_ERROR_CODE, stdout="", stderr=str(result.exception))
    return result


def build(corpus, tools, *options, tokenizer="toy", output="mine"):
    order = ["--order", "3", "--prune", "0 0 1", "--tools", tools]
    return run("build", corpus, "--tokenizer", tokenizer, "-o", output, *order, *options)


def test_build_makes_a_named_model_and_list_shows_it(home, corpus, tools, model_loader):
    result = build(corpus, tools, "--licence", "CC0-1.0", "--quantize-bits", "0")
    assert result.exit_code == 0, result.output
    manifest = Manifest.read(home / "ngram" / "mine")
    vocabulary = CharacterTokenizer().get_vocab()
    assert manifest.tokenizer.name == "toy"
    assert manifest.tokenizer.fingerprint == tokenizer_fingerprint(vocabulary)
    assert manifest.tokenizer.end_of_text_ids == (0, 2)
    assert manifest.tokenizer.vocabulary_size == 8
    assert (manifest.corpus.description, manifest.corpus.num_documents, manifest.corpus.num_tokens) == (
        "corpus.txt",
        3,
        10,
    )
    assert manifest.quantize_bits is None
    assert (tools / "stdin.txt").read_text() == "3 4\n3 4 5\n4 3\n"
    listed = run("list")
    assert listed.exit_code == 0
    (row,) = (line for line in listed.stdout.splitlines() if "mine" in line)
    assert "toy" in row
    assert "CC0-1.0" in row


def test_held_out_documents_are_measured_and_not_learnt(corpus, tools, model_loader):
    result = build(corpus, tools, "--held-out", "1")
    # The tiny model by hand: <s> backs off to 4, 4 backs off to 3, 3 backs off to </s>.
    perplexity = 10 ** ((0.5 + 0.8 + 0.3 + 0.7 + 0.2 + 1.0) / 3)
    assert f"perplexity {perplexity:.3f} on 3 held-out tokens, 0 of them unknown" in result.stdout
    assert (tools / "stdin.txt").read_text() == "3 4\n3 4 5\n"


def test_token_files_are_read_in_rows(tmp_path, tools, model_loader):
    (tmp_path / "ids.u16").write_bytes(bytes([3, 0, 4, 0, 5, 0, 0, 0]))
    assert build(tmp_path / "ids.u16", tools, "--row-tokens", "2", output=tmp_path / "out").exit_code == 0
    assert (tools / "stdin.txt").read_text() == "3 4 <cut>\n5\n"
    assert Manifest.read(tmp_path / "out").name == "out"


def test_options_reach_the_tools(corpus, tools, model_loader):
    options = ["--prune", "0 2", "--memory", "1G", "--quantize-bits", "7", "--backoff-quantize-bits", "5"]
    assert build(corpus, tools, *options).exit_code == 0
    estimate, pack = (json.loads((tools / f"{name}.json").read_text()) for name in ("lmplz", "build_binary"))
    assert " ".join(estimate).startswith("--order 3 --discount_fallback --prune 0 2 --memory 1G")
    assert "-q 7 -b 5" in " ".join(pack)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": "nowhere.txt"}, "The corpus nowhere.txt does not exist."),
        ({"tokenizer": "other"}, "There is no model 'other'."),
        ({"tools": "nowhere"}, "lmplz and build_binary were not found in nowhere."),
        ({"options": ["--prune", "0 x"]}, "integers separated by spaces, got '0 x'."),
        ({"options": ["--order", "7"]}, "between 2 and 6, got 7."),
        ({"options": ["--memory", "much"]}, "The memory must be a number followed by"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(corpus, tools, model_loader, home, change, message):
    arguments = {"corpus": corpus, "tools": tools, "options": [], "tokenizer": "toy"} | change
    result = build(arguments["corpus"], arguments["tools"], *arguments["options"], tokenizer=arguments["tokenizer"])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not list(home.rglob("*"))


def test_list_shows_what_is_wrong_with_a_model(home):
    write_tiny_model(home / "ngram" / "tiny")
    (home / "ngram" / "tiny" / "manifest.json").write_text("{}")
    result = run("list")
    assert result.exit_code == 0
    assert "format version None" in " ".join(result.stdout.split())


def test_the_field_of_json_rows_can_be_named(tmp_path, tools, model_loader):
    (tmp_path / "rows.jsonl").write_text('{"body": "ab", "text": "c"}\n{"body": "ba"}\n')
    assert build(tmp_path / "rows.jsonl", tools, "--text-field", "body").exit_code == 0
    assert (tools / "stdin.txt").read_text() == "3 4\n4 3\n"


def test_a_hopeless_disk_is_told_before_anything_is_read(corpus, tools, model_loader, monkeypatch, home):
    monkeypatch.setattr("shutil.disk_usage", lambda _path: types.SimpleNamespace(free=0))
    result = build(corpus, tools)
    assert result.exit_code == 2
    assert "Free some space, prune more (--prune)" in result.stderr
    assert not home.exists()


def test_an_unfinished_build_is_named_beside_the_list(home):
    (home / "ngram" / ".mine.build").mkdir(parents=True)
    result = run("list")
    assert f"mine: its build is running or was stopped: build it again to continue, or remove {home}" in result.stderr
    assert "mine" not in result.stdout


def test_inspect_shows_what_the_manifest_tells(corpus, tools, model_loader):
    build(corpus, tools)
    shown = run("inspect", "mine").stdout
    for text in (
        "10 tokens in 3 documents",
        "probabilities 8 bits, back-off weights 8 bits",
        "toy (8 tokens)",
        "│ 3     │ 2       │ 1 ",
    ):
        assert text in shown
    counts = [line.split("│")[2].strip() for line in shown.splitlines() if line.startswith("│")]
    assert counts == ["7", "5", "2"]


def test_inspect_reads_manifests_without_counts(home):
    write_tiny_model(home / "ngram" / "tiny")
    path = home / "ngram" / "tiny" / "manifest.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "ngram_counts"}))
    assert run("inspect", "tiny").stdout.count("not recorded") == 3


def test_inspect_measures_a_text_and_lists_continuations(tmp_path, corpus, tools, model_loader):
    build(corpus, tools)
    (tmp_path / "text.txt").write_text("ba")
    result = run("inspect", "mine", "--text", tmp_path / "text.txt", "--phrase", "ab", "--top", "2")
    perplexity = 10 ** ((0.5 + 0.8 + 0.3 + 0.7 + 0.2 + 1.0) / 3)
    assert f"perplexity {perplexity:.3f} on 3 tokens" in result.stdout
    rows = [line.split("│")[1:4] for line in result.stdout.splitlines() if "'" in line and "│" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [["'c'", "5", "0.9333"], ["'a'", "3", "0.0708"]]


def test_inspect_refuses_another_tokenizer(home, model_loader):
    write_tiny_model(home / "ngram" / "tiny")
    result = run("inspect", "tiny", "--phrase", "a")
    assert result.exit_code == 2
    assert "was built for the tokenizer of 'toy'" in result.stderr


def test_verify_tells_what_it_checked_and_what_is_broken(home, corpus, tools, model_loader):
    build(corpus, tools)
    result = run("verify", "mine", "--tokenizer", "toy")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "KenLM can load the binary; its order is 3."
    (home / "ngram" / "mine" / "model.bin").write_bytes(b"cut off")
    result = run("verify", "mine")
    assert result.exit_code == 2
    assert "it has 7 bytes instead of" in result.stderr


def test_verify_of_an_unknown_name_fails(home):
    result = run("verify", "nothing")
    assert result.exit_code == 2
    assert "There is no n-gram model or folder 'nothing'" in result.stderr
