import json
import math

import pytest
from support.models import tiny_tokenizer
from support.ngram import TINY_ARPA, tiny_manifest

from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.evaluation.decoders.ngram_choice import NgramModels
from superdraft.ngram_models.errors import NgramModelNotFoundError
from superdraft.ngram_models.store.manifest import BINARY_FILE, TokenizerIdentity, Tuning, file_sha256
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint
from superdraft.server.settings import Settings

CANDIDATES = [3, 4, 5, 6]


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Models "flat-chat", tuned, and "steep", which prefers token 3 much more."""
    monkeypatch.setenv("SUPERDRAFT_HOME", str(tmp_path))
    tokenizer = Tokenizer(tiny_tokenizer())
    identity = TokenizerIdentity("tiny", tokenizer_fingerprint(tokenizer.vocabulary), 300, (0,))
    steep = TINY_ARPA.replace("-0.7\t3\t", "-0.05\t3\t")
    for name, arpa, tuning in (("flat-chat", TINY_ARPA, Tuning(0.2, 0.3, 12)), ("steep", steep, None)):
        folder = tmp_path / "ngram" / name
        folder.mkdir(parents=True)
        binary = folder / BINARY_FILE
        binary.write_text(arpa, encoding="ascii")
        manifest = tiny_manifest(
            name=name,
            tokenizer=identity,
            tuning=tuning,
            binary_sha256=file_sha256(binary),
            binary_bytes=binary.stat().st_size,
        )
        manifest.write(folder)
    return NgramModels(Settings(model="some-model"), tokenizer)


def probs(scorer, prompt):
    ((*row,),) = scorer.score([scorer.initial_state(prompt)], [CANDIDATES])
    return [math.exp(value) for value in row]


def test_one_model_and_none(models):
    assert probs(models.scorer("steep"), [6])[0] == pytest.approx(10**-0.05)
    assert models.scorer("none") is None
    assert models.scorer("flat-chat") is models.scorer("flat-chat")


def test_settings_that_go_with_a_model(models):
    def filled_in(choice):
        found = models.drafting(choice)
        return found.alpha, found.tau, found.candidates_per_draft, found.max_branches

    assert filled_in("flat-chat") == (0.2, 0.3, 12, 8)
    assert filled_in("steep") == filled_in("none") == filled_in("auto") == (0.54, 0.06, None, 8)


def test_the_default_model_is_the_servers(models):
    ours = NgramModels(Settings(model="some-model", ngram_model="flat-chat"), Tokenizer(tiny_tokenizer()))
    assert probs(ours.scorer("auto"), [6]) == probs(models.scorer("flat-chat"), [6])
    tuned = ours.drafting("auto")
    assert (tuned.selection, tuned.alpha, tuned.candidates_per_draft) == ("distinct", 0.2, 12)
    assert models.scorer("auto") is None  # none is shipped for this tokenizer


def test_identity_changes_with_the_binary(models, tmp_path):
    before = models.identity("steep")
    assert set(before) == {"steep"}
    assert models.identity("none") == {}
    manifest = json.loads((tmp_path / "ngram" / "steep" / "manifest.json").read_text())
    assert before["steep"] == manifest["binary_sha256"]


def test_a_model_that_is_not_there(models):
    with pytest.raises(NgramModelNotFoundError):
        models.scorer("another")
