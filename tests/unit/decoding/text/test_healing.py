"""Token healing: the plan, the index of tokens, and drafts that continue from the last byte."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.decoding import HashScorer
from support.fake_runner import fake_engine
from support.models import tiny_tokenizer
from support.tokenizers import byte_level, merged_byte_level, sentencepiece_like
from tokenizers import normalizers

from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.decoding.text.healing import (
    MAX_TAIL_BYTES,
    MAX_TAIL_TOKENS,
    TokenIndex,
    plan_healing,
)
from superdraft.decoding.text.tokenizer import Tokenizer

PIECES = [
    " impro",
    " don",
    "'t",
    "\n   ",
    "    ",
    "():",
    "foo_ba",
    "kno",
    "☃",
    "🏽",
    " café",
    " हि",
    " e\u0301te\u0301",
]
WORDS = byte_level(PIECES)
TINY = Tokenizer(tiny_tokenizer())
SENTENCEPIECE = sentencepiece_like()
TEXT = st.text(
    st.one_of(
        st.sampled_from("aborw \n\t'_.é—日👍"), st.characters(exclude_characters="▁|<", exclude_categories=("Cs",))
    ),
    min_size=1,
    max_size=40,
)


def heal(text, tokenizer):
    """The bytes of the shared tokens, and those of the tail."""
    token_ids = tokenizer.encode(text)
    num_special = sum(not tokenizer.token_bytes[i] for i in token_ids[:1])
    plan = plan_healing(text, token_ids, num_special, tokenizer)
    if plan is None:
        return None
    assert [*token_ids[: plan.num_shared], *plan.tail] == token_ids
    return tokenizer.bytes_of(token_ids[: plan.num_shared]), tokenizer.bytes_of(plan.tail)


@pytest.mark.parametrize(
    ("base", "piece"),
    [
        ("it is an", " impro"),
        ("I", " don't"),
        ('said "', "kno"),
        ("in", " 2024"),
        ("the", " "),
        ("the", "   "),
        ("the", "\t"),
        ("if x:", "\n    "),
        ("see", " ☃"),
        ("un", " café"),
        ("नमस्ते", " हि"),
    ],
)
def test_the_last_word_and_the_space_before_it_are_the_tail(base, piece):
    whole = heal(base + piece, WORDS)
    assert b"".join(whole) == (base + piece).encode()
    assert whole[1].endswith(piece.encode()[-MAX_TAIL_BYTES:])


SPLIT = merged_byte_level([(" ", "w"), ("o", "r"), ("x", "x")], split=True)


@pytest.mark.parametrize(
    ("base", "piece"),
    [("the", " wor"), ("the", "  "), ("don", "'"), ("a(", "b"), ("x =", " ("), ("in", " 20"), ("a.\n", "b"), ("", "w")],
)
def test_if_the_tokenizer_splits_texts_into_pieces_the_last_piece_is_the_tail(base, piece):
    assert heal(base + piece, SPLIT) == (base.encode(), piece.encode())


@pytest.mark.parametrize(
    "tokenizer", [TINY, WORDS, SENTENCEPIECE, SPLIT], ids=["tiny", "words", "sentencepiece", "split"]
)
@given(text=TEXT)
def test_shared_tokens_and_tail_equal_the_prompt_bytes_within_the_limits(tokenizer, text):
    shared, tail = heal(text, tokenizer)
    assert shared + tail in (text.encode(), b" " + text.encode())
    last = tokenizer.token_bytes[tokenizer.encode(text)[-1]]
    assert len(tail) <= max(MAX_TAIL_BYTES, len(last))


def test_only_the_end_of_a_long_word_is_healed():
    assert heal("a" + "z" * 100, WORDS) == (b"a" + b"z" * 92, b"z" * MAX_TAIL_TOKENS)


def test_a_last_token_longer_than_the_limit_is_taken_whole():
    long = "abcdefghijklmnopqrstuvwxyz0123456789"
    assert heal("." + long, byte_level([long])) == (b".", long.encode())


def test_nothing_is_healed_after_a_special_token_or_across_one():
    assert plan_healing("", [0], 1, WORDS) is None
    assert heal("kno<|endoftext|>", WORDS) is None
    assert heal("see a<|endoftext|>kno", WORDS) == (b"see a", b"kno")
    assert heal("see aENDkno", byte_level(PIECES, special="END")) == (b"see a", b"kno")


def test_fixed_tokens_stay():
    token_ids = WORDS.encode("it is an impro")
    plan = plan_healing("impro", token_ids, len(token_ids), WORDS)
    assert plan is None


def test_a_truncated_prompt_heals_like_the_whole_prompt():
    token_ids = WORDS.encode("it is an impro")[-4:]
    assert WORDS.bytes_of(plan_healing("it is an impro", token_ids, 1, WORDS).tail) == b" impro"


def test_with_a_normalising_tokenizer_only_unchanged_bytes_are_healed():
    lower = byte_level(PIECES, normalizer=normalizers.Lowercase())
    assert heal("It is an impro", lower)[1] == b" impro"
    assert heal("it is an Impro", lower) is None


def test_a_normalised_end_gives_a_warning_and_is_decoded_from_its_tokens():
    lower = byte_level(PIECES, normalizer=normalizers.Lowercase())
    engine, _, _ = fake_engine(tokenizer=lower)
    options = {"token_healing": True, "alpha": 0, "num_drafts": 1, "max_tokens": 2}
    output = engine.generate("it is an Impro", GenerationParams(**options))
    assert "token healing has no effect" in output.warnings[0]
    assert engine.generate("it is an impro", GenerationParams(**options)).warnings == ()


# The index

BYTES = st.lists(st.binary(max_size=4) | st.text("ab", max_size=4).map(str.encode), max_size=30)
REST = st.text("ab", max_size=5).map(str.encode) | st.binary(max_size=4)


@given(BYTES, st.sets(st.integers(0, 29), max_size=5), REST)
@example([b"\xff", b"\xff\xff", b"\xff\x00", b"\xfe"], set(), b"\xff")
def test_the_index_finds_the_tokens_inside_and_beyond_the_typed_bytes(token_bytes, excluded, rest):
    index = TokenIndex(token_bytes, excluded)
    known = [(i, token) for i, token in enumerate(token_bytes) if token and i not in excluded]
    beyond = index.beyond(rest).tolist()
    assert sorted(beyond) == [i for i, token in known if token.startswith(rest) and len(token) > len(rest)]
    assert sorted(index.inside(rest)) == [i for i, token in known if rest.startswith(token)]


def test_a_byte_token_and_a_piece_of_the_same_text_are_both_found():
    vocabulary = SENTENCEPIECE.vocabulary
    index = TokenIndex(SENTENCEPIECE.token_bytes, ())
    assert {vocabulary["a"], vocabulary["<0x61>"]} <= set(index.inside(b"ab"))


# Whole requests


@pytest.mark.parametrize(
    "tokenizer", [TINY, WORDS, SENTENCEPIECE, SPLIT], ids=["tiny", "words", "sentencepiece", "split"]
)
@settings(max_examples=80, deadline=None)
@given(
    text=TEXT,
    strategy=st.sampled_from(["superposed", "sample", "greedy", "sample+superposed", "distinct"]),
    k=st.integers(1, 4),
)
@example(text="the wor", strategy="superposed", k=3)
@example(text="the ", strategy="superposed", k=3)
@example(text="if a:\n        ", strategy="distinct", k=3)
@example(text="the 日本", strategy="superposed", k=3)
def test_every_draft_continues_from_the_last_byte_of_the_prompt(tokenizer, text, strategy, k):
    """After every step, the bytes of the fed and drafted tokens are those of the prompt and the draft's text."""
    engine, _, _ = fake_engine(tokenizer=tokenizer, max_model_len=256)
    ends = tuple((token_id, -100.0) for token_id in tokenizer.eos_token_ids)
    options = {"strategy": strategy, "alpha": 0.3}
    if strategy == "distinct":
        options = {"selection": "distinct", "max_branches": 2, "alpha": 0.0}
    params = GenerationParams(
        num_drafts=k, max_tokens=4, tau=0.5, seed=1, token_healing=True, logit_bias=ends, **options
    )
    engine.add_request(EngineRequest("a", text, params, HashScorer()))
    sequence = engine._sequences["a"]
    typed = tokenizer.bytes_of(sequence.prompt_token_ids)
    assert typed in (text.encode(), b" " + text.encode())
    num_checked = 0
    while engine.has_unfinished:
        engine.step()
        for branch in sequence.branches:
            for draft in branch.drafts.alive:
                assert draft.stem_ids == branch.stem_ids
                fed = [*sequence.shared_token_ids, *branch.stem_ids]
                assert len(fed) == branch.num_context
                assert tokenizer.bytes_of([*fed, *draft.token_ids]) == typed + draft.text
                num_checked += 1
    assert num_checked
