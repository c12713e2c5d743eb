"""From settings to a service: what the n-gram model brings along."""

from dataclasses import replace

import pytest
from support.models import tiny_model_folder, tiny_tokenizer
from support.ngram_folders import put_model, random_arpa

from superdraft.decoding.params import DEFAULT_ALPHA, DEFAULT_TAU
from superdraft.ngram_models.store.manifest import Manifest, TokenizerIdentity, Tuning
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint
from superdraft.server.loading import load_service
from superdraft.server.settings import Settings


@pytest.fixture
def load(tmp_path):
    """Loads a tiny model with an n-gram model, which was tuned or not."""
    model = tiny_model_folder(tmp_path, "llama")
    vocabulary = tiny_tokenizer().get_vocab()
    identity = TokenizerIdentity("llama", tokenizer_fingerprint(vocabulary), len(vocabulary), (0,))

    def start(tuning, **settings):
        folder = put_model(tmp_path, "mine", random_arpa(1, len(vocabulary)), order=2, tokenizer=identity)
        replace(Manifest.read(folder), tuning=tuning).write(folder)
        return load_service(
            Settings(model=str(model), ngram_model="mine", home=tmp_path, kv_memory="1MB", num_slots=1, **settings)
        )

    return start


def test_tuned_values_are_the_defaults(load):
    service = load(Tuning(alpha=0.0, tau=0.3, candidates_per_draft=12))
    drafting = service.drafting
    assert (drafting.alpha, drafting.tau, drafting.candidates_per_draft) == (0.0, 0.3, 12)
    assert drafting.selection == "distinct"  # the values are for requests that ask for the paper's


def test_without_tuned_values_the_papers_are_the_defaults(load):
    drafting = load(None).drafting
    assert (drafting.alpha, drafting.tau, drafting.candidates_per_draft) == (DEFAULT_ALPHA, DEFAULT_TAU, None)
    assert (drafting.selection, drafting.max_branches) == ("distinct", 1)  # no more rows than slots
