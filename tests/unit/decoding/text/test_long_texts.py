"""Long texts: their last tokens, without encoding the text before these."""

import random
from itertools import takewhile

import pytest
from support.models import tiny_fim_tokenizer, tiny_tokenizer
from support.tokenizers import byte_level, merged_byte_level, sentencepiece_like
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel, Digits, Split

from superdraft.decoding.engine.admission import fit_to_context, tokenise
from superdraft.decoding.loading.loader import load_tokenizer
from superdraft.decoding.prompt import PrefixedText
from superdraft.decoding.text import tokenizer as tokenizer_module
from superdraft.decoding.text.tokenizer import Tokenizer

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def adapted(splitters=None, normalizer=None, front=False):
    """The tiny tokenizer with other rules."""
    hf_tokenizer = tiny_tokenizer()
    backend = hf_tokenizer.backend_tokenizer
    if splitters is not None:
        backend.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    if normalizer is not None:
        backend.normalizer = normalizer
    if front:
        special = [("<|endoftext|>", 0)]
        backend.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=special)
    return Tokenizer(hf_tokenizer)


def split_by(regex):
    return [Split(Regex(regex), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]


def closing():
    """A tokenizer that adds a special token after a text."""
    hf_tokenizer = tiny_tokenizer()
    hf_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    return Tokenizer(hf_tokenizer)


def with_added(token, **options):
    hf_tokenizer = tiny_tokenizer()
    hf_tokenizer.add_tokens([AddedToken(token, **options)])
    return Tokenizer(hf_tokenizer)


SPACE_RUNS = [(" ", " "), ("  ", "  "), (" ", "a"), ("1", "2"), ("\n", "\n"), ("a", "b")]
TOKENIZERS = {
    "tiny": Tokenizer(tiny_tokenizer()),
    "fim": Tokenizer(tiny_fim_tokenizer()),
    "merged": merged_byte_level(SPACE_RUNS, split=True),
    "merged without splits": merged_byte_level(SPACE_RUNS, split=False),
    "long tokens": byte_level([" " * 64, "-" * 64]),
    "digits": adapted([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
    "llama 3": adapted(split_by(WORDS % r"\p{N}{1,3}"), front=True),
    "qwen": adapted(split_by(WORDS % r"\p{N}"), normalizers.NFC()),
    "sentencepiece": sentencepiece_like(),
    "closing token": closing(),
    "white space taken in": with_added("<mask>", lstrip=True),
}
PARTS = (
    *" \n\t aabor'sSt0123.,-é—日👍☃½\u0301\u00a0▁",
    "<|fim_prefix|>",
    "   ",
    " don't",
    "\r\n",
    "<mask>",
    " of",
    " 1234",
)


def long_texts(count):
    """Different long texts, the same in every run, and how many of their last tokens are needed."""
    chance = random.Random(0)
    return [("".join(chance.choices(PARTS, k=chance.randint(300, 900))), chance.randint(1, 12)) for _ in range(count)]


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "_WINDOW_CHARS_PER_TOKEN", 1)


@pytest.fixture(scope="module")
def default_tokenizer(default_gguf):
    return Tokenizer(load_tokenizer(str(default_gguf)))


def check_end(tokenizer, text, min_tokens):
    for is_plain, whole in ((False, tokenizer.encode(text)), (True, tokenizer.encode_document(text))):
        end = tokenizer.encode_end(text, min_tokens, is_plain=is_plain)
        if end is None:
            continue
        front, last = end
        assert front == ([] if is_plain else list(takewhile(lambda token: not tokenizer.token_bytes[token], whole)))
        assert len(last) >= min_tokens
        assert last == whole[-len(last) :]


def check_prompt(tokenizer, prompt, room):
    """A prompt cut by its text equals one cut by its tokens."""
    whole = tokenise(prompt, tokenizer)
    cut = tokenise(prompt, tokenizer, min_tokens=room + 1)
    one, _ = fit_to_context(whole, 4, 4 + room, "truncate_left")
    other, _ = fit_to_context(cut, 4, 4 + room, "truncate_left")
    assert (one.token_ids, one.num_start, one.num_fixed, one.text) == (
        other.token_ids,
        other.num_start,
        other.num_fixed,
        other.text,
    )
    assert cut.is_whole or len(whole.token_ids) - whole.num_start > room


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_last_tokens_alone_are_those_of_the_whole_text(name):
    tokenizer = TOKENIZERS[name]
    for text, min_tokens in (*long_texts(12), ("<|endoftext|><|fim_prefix|> a b c d e f g" + " of a" * 200, 3)):
        check_end(tokenizer, text, min_tokens)
        for prompt in (text, PrefixedText((0,), text), PrefixedText((0, 5), text)):
            check_prompt(tokenizer, prompt, min_tokens + 1)


def test_the_default_models_last_tokens(default_tokenizer):
    no_token = [("\x04" * 2000, 1), (" a\x04b" * 200, 3)]  # a byte that this model's vocabulary lacks
    for text, min_tokens in (*long_texts(12), *no_token, (" " * 2000, 1)):
        check_end(default_tokenizer, text, min_tokens)
        check_prompt(default_tokenizer, text, min_tokens + 1)


@pytest.mark.parametrize("text", ["a b ", "0123456789", "---- ", "word\n", "x"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_long_text_is_not_encoded_whole(name, text, monkeypatch):
    tokenizer, long_text, encoded = TOKENIZERS[name], text * 20_000, []
    encode = Tokenizer._divided
    monkeypatch.setattr(
        Tokenizer, "_divided", lambda self, text, is_plain: encoded.append(len(text)) or encode(self, text, is_plain)
    )
    tokens = tokenise(long_text, tokenizer, min_tokens=10)
    assert not tokens.is_whole
    assert len(tokens.token_ids) >= 10
    assert sum(encoded) < len(long_text) / 10
    plain = tokenizer.encode_end(long_text, 10, is_plain=True)
    assert long_text.endswith(tokenizer.decode(plain[1]))


@pytest.mark.parametrize("name", ["long tokens", "tiny"])
def test_as_many_characters_are_encoded_as_the_tokens_need(name):
    """Tokens of 64 characters: the first window has too few of them."""
    text, tokenizer = "x" * 50 + " " * 64 * 300, TOKENIZERS[name]
    tokens = tokenise(text, tokenizer, min_tokens=100)
    whole = tokenizer.encode(text)
    assert len(tokens.token_ids) > 100
    assert list(tokens.token_ids[-100:]) == whole[-100:]


def test_a_short_text_is_encoded_whole():
    assert TOKENIZERS["tiny"].encode_end("a b 1 2 " * 5, 10, is_plain=True) is None
