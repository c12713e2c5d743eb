from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from superdraft.ngram_models.building.encoder import Encoder


def hf_tokenizer(**changes):
    words = {"<s>": 0, "a": 1, "b": 2, "?": 3} | changes
    backend = Tokenizer(WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return SimpleNamespace(backend_tokenizer=backend)


def test_texts_become_ids_without_special_tokens():
    assert Encoder(hf_tokenizer())(["a b", "", "b c"]) == [[1, 2], [], [2, 3]]


def test_truncation_and_padding_settings_do_not_apply_to_a_corpus():
    tokenizer = hf_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding()
    assert Encoder(tokenizer)(["a b a b", "a"]) == [[1, 2, 1, 2], [1]]


def test_the_fingerprint_distinguishes_tokenizers_with_the_same_vocabulary():
    other = hf_tokenizer()
    other.backend_tokenizer.pre_tokenizer = None
    assert Encoder(hf_tokenizer()).fingerprint == Encoder(hf_tokenizer()).fingerprint
    assert Encoder(hf_tokenizer()).fingerprint != Encoder(other).fingerprint


@pytest.mark.parametrize("texts", [[], ["a", "b"]])
def test_a_tokenizer_of_another_library_is_called_directly(texts):
    class Plain:
        def __call__(self, given, *, add_special_tokens, verbose):
            assert not add_special_tokens
            return {"input_ids": [[len(text)] for text in given]}

    assert Encoder(Plain())(texts) == [[1]] * len(texts)
    assert Encoder(Plain()).fingerprint == ""
