"""The n-gram model that is shipped for the default language model."""

import pytest

from superdraft.ngram_models.store.manifest import BINARY_FILE, Manifest
from superdraft.ngram_models.store.registry import find_ngram_model, list_ngram_models, load_ngram_model

NAME = "smollm2-135m"
MAX_BYTES = 30_000_000
# SmolLM2's ids of " one", " of", " the" and " neoliberal".
ONE, OF, THE, RARE = 582, 282, 260, 40_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return find_ngram_model(NAME, home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def model(folder):
    return load_ngram_model(folder, fingerprint=Manifest.read(folder).tokenizer.fingerprint)


def test_it_is_shipped_in_the_package_and_listed(folder, tmp_path):
    assert folder.parts[-3:] == ("ngram_models", "data", NAME)
    assert NAME in {model.name for model in list_ngram_models(tmp_path)}


def test_it_is_small_enough_and_intact(folder, model):
    size = (folder / BINARY_FILE).stat().st_size
    assert size == model.manifest.binary_bytes <= MAX_BYTES
    assert model.scorer.order == model.manifest.order == 6


def test_its_manifest_records_its_origin(model):
    manifest = model.manifest
    assert manifest.name == NAME
    assert manifest.licence == "Apache-2.0"
    assert manifest.tokenizer.vocabulary_size == 49_152
    assert manifest.tokenizer.end_of_text_ids == (0, 2)
    assert manifest.corpus.num_tokens > 33_000_000


def test_it_knows_english(model):
    state = model.scorer.initial_state([ONE, OF])
    the, rare = model.scorer.score([state], [[THE, RARE]])[0]
    assert the > -2
    assert rare < -8
