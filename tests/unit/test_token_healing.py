"""Which tokens of a prompt are taken back, and which tokens may complete it again."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.decoding import HashScorer
from support.fake_runner import fake_engine
from support.models import tiny_tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from superdraft.decoding.params import GenerationParams
from superdraft.decoding.token_healing import (
    MAX_HEALED_BYTES,
    MAX_HEALED_TOKENS,
    HealingPlan,
    TokenIndex,
    keep_forced_tokens,
    plan_healing,
    remaining_after,
)
from superdraft.decoding.tokenizer import Tokenizer


def byte_level(pieces, special="<|endoftext|>", normalizer=None):
    """A byte-level BPE of all bytes, `pieces` and the beginnings of each; `special` is its only special token, id 0."""
    to_alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = [*([special] if special else []), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for piece in pieces:
        ((chars, _),) = to_alphabet.pre_tokenize_str(piece)
        for end in range(2, len(chars) + 1):
            if chars[:end] not in tokens:
                tokens.append(chars[:end])
                merges.append((chars[: end - 1], chars[end - 1]))
    backend = Backend(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = to_alphabet
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special))


def sentencepiece_like():
    """As Llama 2: begin of text in front, a space before the text, byte tokens for what is not in the vocabulary."""
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    tokens += ["▁", "a", "b", "o", "r", "w", "▁a", "▁ab", "▁w", "or", "▁wor"]
    merges = [("▁", "a"), ("▁a", "b"), ("▁", "w"), ("o", "r"), ("▁w", "or")]
    backend = Backend(models.BPE({t: i for i, t in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    )


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
        st.sampled_from("aborw \n\t'_.é—日👍"), st.characters(exclude_characters="▁|", exclude_categories=("Cs",))
    ),
    min_size=1,
    max_size=40,
)
ENDINGS = ["in the wor", "wor ", "wor   ", "wor\n    ", "\twor", "👍🏽", "日本語", "don't", "a", " ", "é", "x" * 50]


def text_bytes(token_ids, tokenizer):
    return b"".join(tokenizer.token_bytes[i] for i in token_ids)


def heal(text, tokenizer):
    """The bytes that stay, and the healing prefix."""
    plan = plan_healing(text, tokenizer.encode(text), tokenizer)
    return None if plan is None else (text_bytes(plan.token_ids, tokenizer), plan.prefix)


@pytest.mark.parametrize(
    ("base", "piece"),
    [
        ("it is an", " impro"),
        ("I", " don't"),
        ("I", " don'"),
        ('said "', "kno"),
        ("x.", "foo_ba"),
        ("well-", "kno"),
        ("in", " 2024"),
        ("the", " "),
        ("the", "   "),
        ("the", "\t"),
        ("the\t", "kno"),
        ("if x:", "\n    "),
        ("f", "():"),
        ("the end", "."),
        ("see ", "☃"),
        ("ok 👍", "🏽"),
        ("un", " café"),
        ("un", " e\u0301te\u0301"),
        ("नमस्ते", " हि"),
        ("東", "京"),
    ],
)
def test_the_unfinished_piece_and_the_space_before_it_are_taken_back(base, piece):
    assert heal(base + piece, WORDS) == (base.encode(), piece.encode())


@pytest.mark.parametrize("tokenizer", [TINY, WORDS], ids=["tiny", "words"])
@given(text=TEXT)
def test_base_and_prefix_are_the_prompt_to_the_byte(tokenizer, text):
    base, prefix = heal(text, tokenizer)
    assert base + prefix == text.encode()


@given(text=TEXT)
def test_a_sentencepiece_prefix_is_the_end_of_the_prompt_with_the_space_in_front_of_it(text):
    plan = plan_healing(text, SENTENCEPIECE.encode(text), SENTENCEPIECE)
    assert plan.token_ids[0] == SENTENCEPIECE.vocabulary["<s>"]
    whole = text_bytes(plan.token_ids, SENTENCEPIECE) + plan.prefix
    assert whole in (text.encode(), b" " + text.encode())


@pytest.mark.parametrize("tokenizer", [TINY, WORDS, SENTENCEPIECE], ids=["tiny", "words", "sentencepiece"])
@given(text=TEXT)
def test_what_is_taken_back_is_bounded_and_stops_at_a_token_border(tokenizer, text):
    token_ids = tokenizer.encode(text)
    plan = plan_healing(text, token_ids, tokenizer)
    taken = token_ids[len(plan.token_ids) :] if plan.token_ids[0] == token_ids[0] else token_ids
    assert text_bytes(taken, tokenizer) == plan.prefix
    assert len(taken) <= MAX_HEALED_TOKENS
    assert len(plan.prefix) <= MAX_HEALED_BYTES


def test_of_a_long_word_only_the_end_is_healed():
    assert heal("a" + "z" * 100, WORDS) == (b"a" + b"z" * 92, b"z" * 8)
    wide = byte_level(["abcdefghijkl"])
    assert heal("abcdefghijkl" * 5, wide) == (b"abcdefghijkl" * 3, b"abcdefghijkl" * 2)


def test_a_last_token_longer_than_the_bound_is_taken_back_whole():
    long = "abcdefghijklmnopqrstuvwxyz0123456789"
    assert heal("." + long, byte_level([long])) == (b".", long.encode())


def test_a_prompt_of_one_word_goes_on_from_the_token_that_starts_a_text():
    assert plan_healing("kno", WORDS.encode("kno"), WORDS) == HealingPlan((0,), b"kno")


def test_without_a_start_token_the_first_token_stays():
    bare = byte_level(["impro"], special=None)
    assert bare.start_token_id is None
    assert heal("impro", bare) is None
    assert heal("improxy", bare) == (b"impro", b"xy")


def test_a_sentencepiece_prompt_of_one_word_keeps_the_begin_of_text():
    assert plan_healing("wo", SENTENCEPIECE.encode("wo"), SENTENCEPIECE) == HealingPlan((1,), b" wo")


def test_nothing_is_taken_back_from_an_empty_prompt_or_across_a_special_token():
    assert plan_healing("", [], WORDS) is None
    assert heal("", SENTENCEPIECE) is None
    assert heal("kno<|endoftext|>", WORDS) is None
    assert heal("see a<|endoftext|>kno", WORDS) == (b"see a", b"kno")
    assert heal("see aENDkno", byte_level(PIECES, special="END")) == (b"see a", b"kno")


def test_a_prompt_that_lost_its_oldest_tokens_heals_alike():
    token_ids = WORDS.encode("it is an impro")[-4:]
    assert plan_healing("it is an impro", token_ids, WORDS).prefix == b" impro"


def test_a_normalising_tokenizer_heals_only_where_its_tokens_are_the_prompts_bytes():
    lower = byte_level(PIECES, normalizer=normalizers.Lowercase())
    assert plan_healing("It is an impro", lower.encode("It is an impro"), lower).prefix == b" impro"
    assert heal("it is an Impro", lower) is None


# The index


def brute_force(token_bytes, excluded, prefix):
    return {
        i
        for i, token in enumerate(token_bytes)
        if token and i not in excluded and (token.startswith(prefix) or prefix.startswith(token))
    }


@given(
    st.lists(st.binary(max_size=4) | st.text("ab", max_size=4).map(str.encode), max_size=30),
    st.sets(st.integers(0, 29), max_size=5),
    st.text("ab", max_size=5).map(str.encode) | st.binary(max_size=4),
)
@example([b"\xff", b"\xff\xff", b"\xff\x00", b"\xfe"], set(), b"\xff")
def test_matching_gives_every_token_that_agrees_with_the_prefix_once(token_bytes, excluded, prefix):
    matching = TokenIndex(token_bytes, excluded).matching(prefix).tolist()
    assert len(matching) == len(set(matching))
    assert set(matching) == brute_force(token_bytes, excluded, prefix)


def test_a_byte_token_and_a_piece_of_the_same_text_both_match():
    vocabulary = SENTENCEPIECE.vocabulary
    index = TokenIndex(SENTENCEPIECE.token_bytes, ())
    assert {vocabulary["a"], vocabulary["<0x61>"]} <= set(index.matching(b"ab").tolist())


@pytest.mark.parametrize("tokenizer", [TINY, WORDS, SENTENCEPIECE], ids=["tiny", "words", "sentencepiece"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_tokens_that_were_taken_back_are_one_way_to_complete_the_prefix(tokenizer, ending):
    excluded = {*tokenizer.suppressed_token_ids, *tokenizer.eos_token_ids}
    index = TokenIndex(tokenizer.token_bytes, excluded)
    token_ids = tokenizer.encode(f"the {ending}")
    plan = plan_healing(f"the {ending}", token_ids, tokenizer)
    prefix = plan.prefix
    for token_id in token_ids[len(plan.token_ids) :]:
        assert token_id in index.matching(prefix)
        assert prefix.startswith(tokenizer.token_bytes[token_id])
        prefix = remaining_after(prefix, tokenizer.token_bytes[token_id])
    assert prefix == b""


@given(st.binary(max_size=5), st.binary(min_size=1, max_size=5))
def test_a_token_takes_its_length_from_what_remains(rest, prefix):
    token = prefix + rest
    assert remaining_after(prefix, token) == b""
    assert remaining_after(token, prefix) == rest


def test_tokens_that_could_only_be_chosen_again_stay_in_the_base():
    token_bytes = [b"", b"1", b"2", b" ", b"2a"]
    index = TokenIndex(token_bytes, ())
    assert keep_forced_tokens(HealingPlan((0,), b" 12"), token_bytes, index) == HealingPlan((0, 3, 1), b"2")
    assert keep_forced_tokens(HealingPlan((0,), b" 1"), token_bytes, index) is None
    assert keep_forced_tokens(HealingPlan((0,), b"2"), token_bytes, index) == HealingPlan((0,), b"2")


def test_a_prefix_that_only_a_longer_token_or_none_can_complete_stays():
    token_bytes = [b"x", b"abc"]
    index = TokenIndex(token_bytes, ())
    for prefix in (b"ab", b"q"):
        assert keep_forced_tokens(HealingPlan((0,), prefix), token_bytes, index) == HealingPlan((0,), prefix)


# Whole requests


@pytest.mark.parametrize("tokenizer", [TINY, WORDS, SENTENCEPIECE], ids=["tiny", "words", "sentencepiece"])
@settings(max_examples=80, deadline=None)
@given(text=TEXT, strategy=st.sampled_from(["superposed", "sample", "sample+superposed"]), k=st.integers(1, 4))
@example(text="the wor", strategy="superposed", k=3)
@example(text="the ", strategy="superposed", k=3)
@example(text="if a:\n        ", strategy="superposed", k=3)
@example(text="the 日本", strategy="superposed", k=3)
@example(text="00", strategy="superposed", k=3)  # a start token in front, and a token that is forced behind it
def test_every_draft_goes_on_from_the_last_byte_of_the_prompt(tokenizer, text, strategy, k):
    """After every step: the tokens fed and drafted are the prompt and the draft's text, to the byte."""
    engine, _, _ = fake_engine(tokenizer=tokenizer, max_model_len=256)
    params = GenerationParams(
        strategy=strategy, num_drafts=k, max_tokens=4, tau=0.5, alpha=0.3, seed=1, token_healing=True
    )
    engine.add_request("a", text, params, HashScorer())
    sequence = engine._sequences["a"]
    typed = text_bytes([*sequence.prompt_token_ids, *sequence.healed_token_ids], tokenizer)
    assert typed in (text.encode(), b" " + text.encode())
    num_checked = 0
    while engine.has_unfinished:
        engine.step()
        fed = list(sequence.prompt_token_ids)
        if sequence.warnings:  # nothing continued the word: what was taken back was fed
            fed += sequence.healed_token_ids
        for draft in (draft for branch in sequence.branches for draft in branch.drafts.alive):
            so_far = text_bytes([*fed, *draft.token_ids], tokenizer)
            assert so_far + draft.healing == typed + draft.text
            num_checked += bool(draft.text)
    assert num_checked
