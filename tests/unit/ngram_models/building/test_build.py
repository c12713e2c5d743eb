import json
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.ngram import END_OF_TEXT_IDS, FAILING_TOOL, FINGERPRINT, write_fake_tools, write_tool

from superdraft.ngram_models.building.build import BuildOptions, build_ngram_model
from superdraft.ngram_models.building.corpus import Text
from superdraft.ngram_models.building.disk_space import needed_disk_bytes
from superdraft.ngram_models.building.encoder import Encoder
from superdraft.ngram_models.errors import BuildToolMissingError, CorpusError, NgramBuildError
from superdraft.ngram_models.store.manifest import Manifest, TokenizerIdentity
from superdraft.ngram_models.store.registry import load_ngram_model
from superdraft.ngram_models.tools import Tools, find_tools


class LetterTokenizer:
    def __call__(self, texts, *, add_special_tokens, verbose):
        return {"input_ids": [[3 + ord(letter) - ord("a") for letter in text] for text in texts]}


TOY_TOKENIZER = TokenizerIdentity("toy", FINGERPRINT, 100, END_OF_TEXT_IDS)


@pytest.fixture
def tools(tmp_path):
    return find_tools(write_fake_tools(tmp_path / "bin"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models" / "tiny"


def build(sequences, folder, tools, options=None, **others):
    options = options or BuildOptions(order=3, prune=(0, 0, 1))
    fixed = {"tokenizer": TOY_TOKENIZER, "description": "toy", "licence": "CC0-1.0"}
    return build_ngram_model(sequences, folder, tools=tools, options=options, **fixed, **others)


def noted(tools, name):
    return json.loads((tools.lmplz.parent / f"{name}.json").read_text())


def nothing_is_left(folder):
    return not folder.exists() and not list(folder.parent.iterdir())


def test_every_text_is_a_line_of_words_and_cut_off_texts_are_marked(folder, tools):
    manifest = build(iter([[3, 4, 0, 5], [2, 6, 6, 2, 0], [], [99, 3]]), folder, tools)
    lines = (tools.lmplz.parent / "stdin.txt").read_text()
    assert lines == "3 4\n5 <cut>\n6 6\n99 3 <cut>\n"
    assert (manifest.corpus.num_tokens, manifest.corpus.num_documents) == (11, 4)


def test_the_options_are_passed_to_the_tools(folder, tools):
    options = BuildOptions(order=3, prune=(0, 1), quantize_bits=7, backoff_quantize_bits=5, memory="30%")
    build([[3, 0]], folder, tools, options)
    estimate, pack = noted(tools, "lmplz"), noted(tools, "build_binary")
    assert " ".join(estimate[:-1]) == "--order 3 --discount_fallback --prune 0 1 --memory 30% --temp_prefix"
    assert pack[0] == "-T"
    assert pack[2:-2] == ["-S", "30%", "-a", "22", "-q", "7", "-b", "5", "trie"]
    # All temporary files were next to the model, on the same disk, and have been removed.
    assert Path(estimate[-1]).parent == Path(pack[1]).parent
    assert Path(pack[1]).is_relative_to(folder.parent)
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize(("bits", "backoff_bits", "arguments"), [(None, None, []), (6, None, ["-q", "6", "-b", "6"])])
def test_quantisation_is_optional(folder, tools, bits, backoff_bits, arguments):
    options = BuildOptions(order=3, prune=(0,), quantize_bits=bits, backoff_quantize_bits=backoff_bits)
    manifest = build([[3, 0]], folder, tools, options)
    assert noted(tools, "build_binary")[6:-3] == arguments
    assert (manifest.quantize_bits, manifest.backoff_quantize_bits) == (bits, backoff_bits or bits)


def test_pruning_beyond_the_order_is_not_used(folder, tools):
    manifest = build([[3, 0]], folder, tools, BuildOptions(order=3))
    assert noted(tools, "lmplz")[3:7] == ["--prune", "0", "0", "1"]
    assert manifest.prune == (0, 0, 1)


def test_the_model_loads_and_its_manifest_records_the_arguments(folder, tools):
    manifest = build([[3, 4, 0]], folder, tools)
    loaded = load_ngram_model(folder, fingerprint=FINGERPRINT)
    assert loaded.manifest == manifest
    assert (manifest.name, manifest.licence, manifest.corpus.description) == ("tiny", "CC0-1.0", "toy")
    assert manifest.tokenizer == TOY_TOKENIZER
    assert manifest.prune == (0, 0, 1)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.bin"]


def test_progress_reports_stages_and_tokens(folder, tools):
    seen = []
    documents = repeat([3] * 1_000_000, 5)
    build(documents, folder, tools, progress=lambda stage, tokens: seen.append((stage, tokens // 1_000_000)))
    shards = [3, 5]  # in millions of tokens
    assert seen == [*[("read", n) for n in shards], *[("estimate", n) for n in shards], ("pack", 5)]


def test_text_is_encoded_and_a_piece_of_a_document_does_not_end_the_text(folder, tools):
    texts = [Text("abc"), [6, 0], Text("ba", is_whole=False), Text("c")]
    manifest = build(texts, folder, tools, encoder=Encoder(LetterTokenizer()))
    assert (tools.lmplz.parent / "stdin.txt").read_text() == "3 4 5\n6\n4 3 <cut>\n5\n"
    assert (manifest.corpus.num_tokens, manifest.corpus.num_documents) == (10, 4)


def test_text_without_an_encoder_is_an_error(folder, tools):
    with pytest.raises(ValueError, match="need an encoder"):
        build([Text("abc")], folder, tools)
    assert nothing_is_left(folder)


def test_the_manifest_has_the_counts_of_the_arpa_file(folder, tools):
    assert build([[3, 4, 0]], folder, tools).ngram_counts == (7, 5, 2)


@pytest.mark.parametrize(("prune", "measured_gb"), [((0, 0, 1, 1, 2, 2), 4.1), ((0,), 10.4)])
def test_the_disk_estimate_covers_a_real_build_and_is_not_far_off(prune, measured_gb):
    # Measured during builds from 44 million tokens of text and code.
    assert measured_gb <= needed_disk_bytes(44_173_563, 6, prune) / 1e9 <= 2 * measured_gb


def test_a_disk_that_is_too_small_is_reported_before_lmplz_starts(folder, tools, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=100))
    with pytest.raises(NgramBuildError, match=r"order 3 from 4,000 tokens needs about 0\.0 GB .* has 0\.0 GB left"):
        build([[3] * 4000], folder, tools)
    assert not (tools.lmplz.parent / "lmplz.json").exists()


def test_a_rebuilt_model_replaces_the_old_one(folder, tools):
    build([[3, 4, 0]], folder, tools)
    build([[3, 4, 0]] * 5, folder, tools)
    assert Manifest.read(folder).corpus.num_documents == 5
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_a_failed_rebuild_leaves_the_old_model(folder, tools):
    build([[3, 4, 0]], folder, tools)
    with pytest.raises(CorpusError):
        build([[3, 4, 0], [1000]], folder, tools)
    assert load_ngram_model(folder, fingerprint=FINGERPRINT).manifest.corpus.num_documents == 1


def test_other_folders_are_not_replaced(folder, tools):
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(NgramBuildError, match="exists and is not an n-gram model"):
        build([[3, 0]], folder, tools)
    assert (folder / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("sequences", [[], [[]], [[0, 2, 0]]])
def test_a_corpus_without_tokens_is_refused(folder, tools, sequences):
    with pytest.raises(CorpusError, match="contains no tokens"):
        build(sequences, folder, tools)
    assert nothing_is_left(folder)


@pytest.mark.parametrize("token_id", [100, -1])
def test_token_ids_of_another_tokenizer_are_refused(folder, tools, token_id):
    with pytest.raises(CorpusError, match=f"token id {token_id}, but the tokenizer has 100 tokens"):
        build([[3, 4, 0], [3, token_id]], folder, tools)
    assert nothing_is_left(folder)


def test_an_interrupted_corpus_leaves_nothing(folder, tools):
    def sequences():
        yield [3, 4, 0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(sequences(), folder, tools)
    assert nothing_is_left(folder)


def test_a_failing_lmplz_is_reported_at_once_with_its_error_output(folder, tools):
    write_tool(tools.lmplz.parent, "lmplz", FAILING_TOOL)
    # More than the pipe's buffer holds, so that lmplz fails while it is being fed.
    with pytest.raises(NgramBuildError, match="lmplz failed with exit code 3: cannot do that"):
        build([[3, 4, 5, 0] * 100_000], folder, tools)
    assert not folder.exists()


def test_a_failing_build_binary_is_reported(folder, tools):
    write_tool(tools.lmplz.parent, "build_binary", FAILING_TOOL)
    with pytest.raises(NgramBuildError, match="build_binary failed with exit code 3: cannot do that"):
        build([[3, 0]], folder, tools)
    assert not folder.exists()


def test_a_tool_that_cannot_be_started_is_reported(folder, tools):
    missing = Tools(Path("/nowhere/lmplz"), tools.build_binary, "")
    with pytest.raises(BuildToolMissingError, match="/nowhere/lmplz cannot be started"):
        build([[3, 0]], folder, missing)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 7}, "between 2 and 6, got 7"),
        ({"order": 1}, "between 2 and 6, got 1"),
        ({"prune": (1, 1)}, "start with 0"),
        ({"prune": (0, 2, 1)}, "not decrease"),
        ({"prune": ()}, "start with 0"),
        ({"quantize_bits": 26}, "between 1 and 25 bits, got 26"),
        ({"backoff_quantize_bits": 0}, "between 1 and 25 bits, got 0"),
        ({"quantize_bits": None}, "quantised only if"),
        ({"memory": "lots"}, "a number followed by b, K, M, G, T or %, got 'lots'"),
        ({"memory": "900T"}, "between 0 and the .* GB of this machine, got '900T'"),
        ({"memory": "101%"}, "between 0 and the .* GB of this machine, got '101%'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BuildOptions(**options)


def real_tools():
    try:
        return find_tools()
    except BuildToolMissingError:
        return None


@pytest.mark.skipif(real_tools() is None, reason="KenLM's lmplz is not installed here: make lmplz builds it")
def test_the_real_tools_build_a_model_that_predicts_its_corpus(folder):
    manifest = build([[3, 4, 5, 0]] * 30 + [[3, 6, 5]] * 3, folder, real_tools(), BuildOptions(order=4, memory="64M"))
    scorer = load_ngram_model(folder, fingerprint=FINGERPRINT).scorer
    assert scorer.order == manifest.order == 4
    state = scorer.initial_state([0, 3])
    after_3 = scorer.score([state], [[4, 6, 5, 7]])[0]
    assert after_3[0] > after_3[1] > after_3[2] > after_3[3]
    # 5 is the last token of all 33 texts, but only 30 of them end there.
    ends = scorer.score([scorer.initial_state([3, 4, 5]), scorer.initial_state([3, 6, 5])], [[0], [0]])
    assert ends[0] > ends[1]
