"""Long texts: places where they may be cut, the last tokens alone, and a lower bound of their number of tokens."""

import unicodedata
from itertools import takewhile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.models import tiny_fim_tokenizer, tiny_tokenizer
from support.tokenizers import byte_level, merged_byte_level, sentencepiece_like
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel, Digits, Split
from transformers import AutoTokenizer

from superdraft.decoding.engine.admission import fit_to_context, tokenise
from superdraft.decoding.prompt import PrefixedText
from superdraft.decoding.text import cuts as cuts_module
from superdraft.decoding.text import tokenizer as tokenizer_module
from superdraft.decoding.text.cuts import last_cut
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
CUT = {
    "tiny": Tokenizer(tiny_tokenizer()),
    "fim": Tokenizer(tiny_fim_tokenizer()),
    "merged": merged_byte_level(SPACE_RUNS, split=True),
    "digits": adapted([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
    "llama 3": adapted(split_by(WORDS % r"\p{N}{1,3}"), front=True),
    "qwen": adapted(split_by(WORDS % r"\p{N}"), normalizers.NFC()),
}
WHOLE = {
    "no splits": byte_level([" impro", "    ", "12"]),
    "merged without splits": merged_byte_level(SPACE_RUNS, split=False),
    "normal form C": byte_level(["가나다라마바사아"], normalizer=normalizers.NFC()),
    "sentencepiece": sentencepiece_like(),
    "lower case": adapted(normalizer=normalizers.Lowercase()),
    "closing token": closing(),
    "white space taken in": with_added("<mask>", lstrip=True),
    "added token with a cut in it": with_added("see also"),
    "unknown regex": adapted(split_by(r"\w+ \w+|.")),
}
UNBOUNDED = ("lower case", "white space taken in")
CHARS = st.one_of(
    st.sampled_from(" \n\t  aabor'sSt0123.,-é—日👍☃½\u0301\u00a0\u2000\x1c\r\u212b▁"),
    st.characters(exclude_categories=("Cs",)),
)
PARTS = st.one_of(
    CHARS, st.sampled_from(["<|endoftext|>", "<|fim_prefix|>", "   ", " don't", "\r\n", "<mask>", "1234"])
)
TEXTS = st.lists(PARTS, max_size=60).map("".join)


@pytest.fixture(autouse=True)
def _short_parts(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "_PART_CHARS", 4)
    monkeypatch.setattr(cuts_module, "_FIRST_WINDOW", 2)


@pytest.fixture(scope="module")
def default_tokenizer(default_model):
    return Tokenizer(AutoTokenizer.from_pretrained(default_model))


def check_end(tokenizer, text, min_tokens):
    for is_plain, whole in ((False, tokenizer.encode(text)), (True, tokenizer.encode_inside(text))):
        end = tokenizer.encode_end(text, min_tokens, is_plain=is_plain)
        if end is None:
            continue
        front, last = end
        specials = [] if is_plain else list(takewhile(lambda token: not tokenizer.token_bytes[token], whole))
        assert front == specials
        assert last == whole[len(front) :][-len(last) :]
        assert len(last) >= min_tokens
        if is_plain:
            assert last == tokenizer.encode_document(text)[-len(last) :]


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


@pytest.mark.parametrize("name", CUT)
@settings(max_examples=300, deadline=None)
@given(text=TEXTS, min_tokens=st.integers(1, 12))
@example(text="a  b  1   2 \n c d   \n  e", min_tokens=5)
@example(text="<|endoftext|><|fim_prefix|> a b c d e f g", min_tokens=3)
@example(text="0<|endoftext|><|fim_prefix|>", min_tokens=1)
@example(text="a   1   2   3  44  5", min_tokens=5)
def test_the_last_tokens_alone_are_those_of_the_whole_text(name, text, min_tokens):
    check_end(CUT[name], text, min_tokens)
    if text:
        check_prompt(CUT[name], text, min_tokens + 1)
    check_prompt(CUT[name], PrefixedText((0,), text), min_tokens + 1)
    check_prompt(CUT[name], PrefixedText((0, 5), text), min_tokens + 1)


@settings(max_examples=500, deadline=None)
@given(text=TEXTS, min_tokens=st.integers(1, 12))
@example(text="\x04" * 200, min_tokens=1)  # a byte that this model's vocabulary lacks
@example(text=" a\x04b" * 9, min_tokens=3)
@example(text="\x04<|endoftext|>\x04 a b c d e", min_tokens=3)
@example(text=" " * 200, min_tokens=1)
def test_the_default_models_last_tokens(default_tokenizer, text, min_tokens):
    check_end(default_tokenizer, text, min_tokens)
    check_prompt(default_tokenizer, text or "a", min_tokens + 1)
    assert default_tokenizer.fewest_tokens(text) <= len(default_tokenizer.encode(text))


@pytest.mark.parametrize("name", CUT)
def test_a_long_text_is_not_encoded_whole(name):
    tokens = tokenise("a b " * 50, CUT[name], min_tokens=10)
    assert not tokens.is_whole
    assert 10 <= len(tokens.token_ids) < 20


def test_the_default_model_encodes_neither_a_long_text_nor_a_long_number_whole(default_tokenizer):
    for text in ("a b " * 50, "0123456789" * 20):
        assert not tokenise(text, default_tokenizer, min_tokens=10).is_whole
    assert default_tokenizer.fewest_tokens("a" * 8100) == 100  # its longest token has 81 bytes


@pytest.mark.parametrize("name", WHOLE)
def test_a_text_is_encoded_whole_if_a_cut_might_change_its_tokens(name):
    assert WHOLE[name].encode_end("a b 1 2 " * 50, 10, is_plain=False) is None
    assert tokenise("a b 1 2 " * 50, WHOLE[name], min_tokens=10).is_whole


def test_a_text_that_would_be_normalised_is_encoded_whole():
    assert CUT["qwen"].encode_end("a e\u0301 b " * 50, 10, is_plain=True) is None


@pytest.mark.parametrize("name", [*CUT, *WHOLE])
@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
@example(text="▁" * 50)
@example(text=unicodedata.normalize("NFD", "가나다라마바사아") * 4)
@example(text="see also" * 20)
@example(text="<|endoftext|>" * 20)
@example(text="  <mask>" + " " * 100)
def test_no_text_has_fewer_tokens_than_the_bound(name, text):
    tokenizer = {**CUT, **WHOLE}[name]
    fewest = tokenizer.fewest_tokens(text)
    assert fewest <= min(len(tokenizer.encode(text)), len(tokenizer.encode_inside(text)))
    if name in UNBOUNDED:
        assert fewest == 0
    else:
        assert fewest > 0 or not text


def test_the_last_cut_is_found_however_far_back():
    pattern = cuts_module.safe_cuts(
        {"pre_tokenizer": {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}}
        | {"model": {}, "normalizer": None, "added_tokens": []}
    )
    assert last_cut("a b" + "x" * 100, pattern, 90) == 1
    assert last_cut("a b c", pattern, 3) == 3
    assert last_cut("a b c", pattern, 2) == 1
    assert last_cut("x" * 100, pattern, 90) == 0
