"""Encoding of text in the middle of a longer text: no special tokens and no leading space."""

import pytest
from support.models import QWEN_FIM, tiny_fim_tokenizer, tiny_tokenizer
from support.tokenizers import byte_level, sentencepiece_like

from superdraft.decoding.text.tokenizer import Tokenizer

SENTENCEPIECE = sentencepiece_like()
WORDS = byte_level([" impro", " don", "    ", "foo_ba", "☃", " café"])
TINY = Tokenizer(tiny_tokenizer())
FIM = Tokenizer(tiny_fim_tokenizer())


@pytest.mark.parametrize("tokenizer", [TINY, WORDS, SENTENCEPIECE, FIM], ids=["tiny", "words", "sentencepiece", "fim"])
@pytest.mark.parametrize("text", ["wor", " wor", "  a", "a\n\tb", "é日👍", "<|endoftext|>", "</s>x", *QWEN_FIM])
def test_text_inside_a_text_has_exactly_its_own_bytes(tokenizer, text):
    token_ids = tokenizer.encode_inside(text)
    assert tokenizer.bytes_of(token_ids) == text.encode()
    assert not {tokenizer.vocabulary.get(name) for name in QWEN_FIM} & set(token_ids)


def test_many_texts_are_encoded_like_single_ones():
    texts = ["wor", "", "a b", " b", "or"]
    assert SENTENCEPIECE.encode_all_inside(texts) == [SENTENCEPIECE.encode_inside(text) for text in texts]
