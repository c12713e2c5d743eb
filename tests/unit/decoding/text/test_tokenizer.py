"""Bytes of tokens, end-of-text and suppressed ids, text without broken characters."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models import tiny_tokenizer
from support.waiting import eventually
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from superdraft.decoding.errors import UnsupportedModelError
from superdraft.decoding.text.tokenizer import Tokenizer, valid_utf8_prefix

BYTE_LEVEL = Tokenizer(tiny_tokenizer())


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As in Llama 2: a metaspace for spaces, and byte tokens for text outside the vocabulary."""
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "a", "b", "▁a", "▁ab", "\n"]
    merges = [("▁", "a"), ("▁a", "b")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


SENTENCEPIECE = Tokenizer(sentencepiece_like(), model_vocab_size=280)


@given(st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=30))
def test_byte_level_tokens_represent_the_text_exactly(text):
    ids = BYTE_LEVEL.encode(text)
    assert b"".join(BYTE_LEVEL.token_bytes[i] for i in ids) == text.encode()
    assert BYTE_LEVEL.decode(ids) == text


@given(st.text(st.characters(exclude_characters="▁<", exclude_categories=("Cs",)), max_size=30))
def test_sentencepiece_tokens_represent_the_text_with_a_leading_space(text):
    ids = SENTENCEPIECE.encode(text)
    assert SENTENCEPIECE.decode(ids) in (text, " " + text)


def test_a_continuation_keeps_the_space_that_decoding_alone_would_drop():
    ids = [SENTENCEPIECE.vocabulary["▁ab"]]
    assert sentencepiece_like().decode(ids) == "ab"
    assert SENTENCEPIECE.decode(ids) == " ab"


def test_special_and_padding_ids_are_suppressed_but_ends_of_text_are_not():
    vocabulary = SENTENCEPIECE.vocabulary
    assert SENTENCEPIECE.eos_token_ids == {vocabulary["</s>"]}
    padding = set(range(len(vocabulary), 280))
    assert set(SENTENCEPIECE.suppressed_token_ids) == {vocabulary["<unk>"], vocabulary["<s>"]} | padding
    assert SENTENCEPIECE.decode([vocabulary["<s>"], *padding]) == ""


CONTROL = [
    *("<|im_start|>", "<\uff5cUser\uff5c>", "<tool_call>", "</think>", "<start_of_image>", "<unused7>", "<fim-prefix>"),
    *("<mask>", "[multimodal]", "[INST]", "[/INST]", "[PAD151665]", "</bbox>"),
]
TEXT = ["\n\n\n", "\t\t", "        ", "<table>", "</td>", "<h1>", "</S>", "<=", "[]", "[0]", "->", "word"]


def test_added_tokens_of_a_control_tokens_form_are_suppressed_and_those_of_text_are_not():
    backend = tiny_tokenizer()
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in (*CONTROL, *TEXT)])
    backend.add_special_tokens({"additional_special_tokens": ["marked"]})
    tokenizer = Tokenizer(backend)
    ids = tokenizer.vocabulary
    assert {ids[name] for name in (*CONTROL, "marked")} == set(tokenizer.suppressed_token_ids)
    for name in CONTROL:
        assert tokenizer.token_bytes[ids[name]] == b""
        assert tokenizer.token_text(ids[name]) == name
        assert ids[name] not in tokenizer.encode_inside(f"a{name}b")  # a file may spell it
    for name in TEXT:
        assert ids[name] in tokenizer.draftable_ids
        assert tokenizer.token_bytes[ids[name]] == name.encode()
        assert ids[name] in tokenizer.encode_inside(f"a{name}b")


def test_the_models_own_ends_are_added():
    assert Tokenizer(tiny_tokenizer(), 300, eos_token_ids=[17]).eos_token_ids == {0, 17}


def test_an_empty_text_starts_with_the_document_separator_or_the_beginning_of_text():
    assert BYTE_LEVEL.start_token_id == 0
    assert SENTENCEPIECE.start_token_id == SENTENCEPIECE.vocabulary["<s>"]


def test_a_text_of_qwen_starts_with_a_line_break_not_with_the_document_separator():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|object_ref_start|>"]})
    qwen = Tokenizer(tokenizer)
    assert qwen.bytes_of([qwen.start_token_id]) == b"\n"


def test_token_text_names_special_tokens_and_marks_broken_characters():
    assert BYTE_LEVEL.token_text(0) == "<|endoftext|>"
    (first, *_) = BYTE_LEVEL.encode("é")
    assert BYTE_LEVEL.token_text(BYTE_LEVEL.encode(" a")[0]).startswith(" ")
    assert BYTE_LEVEL.token_text(first) in ("é", "\ufffd")


def test_a_tokenizer_whose_bytes_are_unknown_is_refused():
    backend = Backend(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[UNK]"))
    with pytest.raises(UnsupportedModelError, match="WordPiece"):
        _ = tokenizer.token_bytes


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        ("é".encode(), "é"),
        (b"a\xc3", "a"),
        (b"a\xf0\x9f\x98", "a"),
        (b"\xff", "\ufffd"),
        (b"\xffb\xc3", "\ufffdb"),
        (b"\x80a", "\ufffda"),
        (b"\xc3a", "\ufffda"),
    ],
)
def test_an_unfinished_character_is_withheld_and_a_broken_one_is_shown(data, text):
    assert valid_utf8_prefix(data) == text


@given(st.text(max_size=8), st.integers(0, 32))
def test_any_cut_of_a_text_shows_only_whole_characters(text, cut):
    shown = valid_utf8_prefix(text.encode()[:cut])
    assert text.startswith(shown)
    assert len(text.encode()[:cut]) - len(shown.encode()) < 4


@pytest.mark.parametrize("encode", ["encode", "encode_inside", "encode_document"])
def test_other_threads_run_while_a_long_text_is_encoded(encode):
    text = "we are a b " * 30_000

    def num_turns() -> int:
        """Of this thread while another one encodes. If encoding kept others out, there were the first and the last."""
        encoding = threading.Thread(target=getattr(BYTE_LEVEL, encode), args=(text,))
        encoding.start()
        turns = 0
        while encoding.is_alive():
            time.sleep(0.001)
            turns += 1
        return turns

    assert eventually(lambda: num_turns() > 5)  # other processes may be in the way


def test_threads_may_encode_at_once():
    texts = [f"we are {i} a b " * (1 if i % 2 else 1000) for i in range(60)]

    def both(text):
        return BYTE_LEVEL.encode(text), BYTE_LEVEL.encode_inside(text)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(both, texts)) == [both(text) for text in texts]
