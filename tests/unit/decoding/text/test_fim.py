"""Prompts for a gap: each family's tokens, truncation, and the parts that typing leaves unchanged."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models import CODESTRAL_FIM, QWEN_FIM, STARCODER_FIM, tiny_fim_tokenizer, tiny_tokenizer

from superdraft.decoding.prompt import PrefixedText
from superdraft.decoding.text.fim import (
    Budget,
    ContextFile,
    Gap,
    fim_prompt,
    find_fim_tokens,
    gap_prompt,
    prefix_prompt,
)
from superdraft.decoding.text.tokenizer import Tokenizer

ROOMY = Budget(1000, 500)
PLAIN = Tokenizer(tiny_tokenizer())
QWEN = Tokenizer(tiny_fim_tokenizer(), 320)
STARCODER = Tokenizer(tiny_fim_tokenizer(STARCODER_FIM), 320)
CODESTRAL = Tokenizer(tiny_fim_tokenizer(CODESTRAL_FIM), 320)


def shown(prompt, tokenizer=QWEN):
    """The prompt as one string, with special tokens by name."""
    return "".join(tokenizer.token_text(i) for i in prompt.token_ids) + prompt.text


def length(prompt, tokenizer=QWEN):
    return len(prompt.token_ids) + len(tokenizer.encode_inside(prompt.text))


def prompt_of(gap, budget=ROOMY, tokenizer=QWEN):
    return gap_prompt(gap, find_fim_tokens(tokenizer.vocabulary), tokenizer, budget)


class SentencePieceLike:
    """As Code Llama's: a token in front of every text and a space before its first word. One token per byte."""

    names = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
    vocabulary = (
        {f"<0x{i:02X}>": i for i in range(256)} | {"<s>": 256} | {name: 257 + i for i, name in enumerate(names)}
    )
    start_token_id = 256

    def encode(self, text):
        return [256, *(b" " + text.encode() if text else b"")]

    def encode_inside(self, text):
        return list(text.encode())


@pytest.mark.parametrize(
    "names",
    [
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001
        ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ],
)
def test_every_family_is_found_by_its_own_names(names):
    vocabulary = {"a": 0, **{name: 10 + i for i, name in enumerate(names)}}
    fim = find_fim_tokens(vocabulary)
    assert fim is not None
    assert (fim.prefix, fim.suffix, fim.middle) == (10, 11, 12)
    assert (fim.file_separator, fim.repo_name) == (None, None)
    del vocabulary[names[1]]
    assert find_fim_tokens(vocabulary) is None


def test_codestral_is_found_with_its_suffix_first():
    fim = find_fim_tokens({"[PREFIX]": 5, "[SUFFIX]": 6, "[MIDDLE]": 7})
    assert fim is not None
    assert (fim.prefix, fim.suffix, fim.middle) == (5, 6, None)
    assert fim.end_token_ids == {5, 6, 7}
    assert find_fim_tokens({"[PREFIX]": 5, "[MIDDLE]": 7}) is None


def test_file_tokens_alone_are_not_fim_tokens():
    assert find_fim_tokens({"<file_sep>": 1, "<repo_name>": 2, "<|endoftext|>": 0}) is None  # SmolLM2's


def test_tokens_that_end_an_answer():
    names = {name: i for i, name in enumerate((*QWEN_FIM, "<|endoftext|>", "<|im_start|>"))}
    fim = find_fim_tokens(names)
    assert fim is not None
    assert {name for name, i in names.items() if i in fim.end_token_ids} == {*QWEN_FIM, "<|endoftext|>"}


def test_typed_line_comes_after_the_middle_token():
    prompt = prompt_of(Gap("def f(a):\n    ret", " a\n"))
    assert shown(prompt.prompt) == "<|fim_prefix|>def f(a):\n<|fim_suffix|> a\n<|fim_middle|>    ret"
    assert not prompt.is_truncated


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("a\n  if b", "  if b"),
        ("a\n        ", "        "),  # after an indent
        ("retu", "retu"),
        ("a b\n", ""),
        ("a b\r\n", ""),
        ("", ""),
    ],
)
def test_line_comes_last_and_is_healed(prefix, text):
    prompt = prompt_of(Gap(prefix, ":\n")).prompt
    assert prompt.text == text
    assert shown(prompt) == f"<|fim_prefix|>{prefix.removesuffix(text)}<|fim_suffix|>:\n<|fim_middle|>{text}"


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("a\n  if b", " b"),
        ("a\n  x = ", " "),
        ("a\n  x =   ", "   "),
        ("a\n\tx\tretu", "\tretu"),
        ("a\nretu", "retu"),
        ("a\n        ", "\n        "),  # the line break is part of the same run
        ("a b\r\n", "\r\n"),
        ("", ""),
    ],
)
def test_last_piece_is_a_word_with_its_blank_or_a_run_of_blanks(prefix, text):
    prompt = prompt_of(Gap(prefix, ":\n"), tokenizer=CODESTRAL).prompt
    assert prompt.text == text
    assert shown(prompt, CODESTRAL) == f"[SUFFIX]:\n[PREFIX]{prefix}"


def test_long_line_stays_in_the_prefix_except_its_last_piece():
    words, one_word = "ab " * 100 + "cd", "é日" * 100
    assert prompt_of(Gap("x\n" + words, "y"), Budget(120, 0)).prompt.text == " cd"
    text = prompt_of(Gap("x\n" + one_word, "y"), Budget(120, 0)).prompt.text
    assert one_word.endswith(text)
    assert 0 < len(text) < len(one_word)


def test_codestrals_prompt_begins_with_the_suffix_and_has_no_middle_token():
    prompt = prompt_of(Gap("def f(a):\n    ret", " a\n", (ContextFile("b.py", "B"),)), tokenizer=CODESTRAL).prompt
    assert shown(prompt, CODESTRAL) == "[SUFFIX] a\n[PREFIX]B\n\ndef f(a):\n    ret"
    assert prompt.text == " ret"
    assert {CODESTRAL.vocabulary[name] for name in CODESTRAL_FIM} <= CODESTRAL.eos_token_ids


def test_typing_does_not_change_a_long_suffix_before_the_prefix():
    budget, line = Budget(60, 0), "over the lazy dog"
    prompts = [prompt_of(Gap(line[:end], "\nend\n" * 40), budget, CODESTRAL).prompt for end in range(18)]
    prefix = find_fim_tokens(CODESTRAL.vocabulary).prefix
    heads = {prompt.token_ids[: prompt.token_ids.index(prefix)] for prompt in prompts}
    assert all(length(prompt, CODESTRAL) <= 60 for prompt in prompts)
    assert len(heads) <= 3


SPELLED = "".join((*QWEN_FIM, *STARCODER_FIM, *CODESTRAL_FIM, "<|im_end|>", "<|endoftext|>"))


@pytest.mark.parametrize("names", [QWEN_FIM, STARCODER_FIM, CODESTRAL_FIM])
def test_text_that_spells_control_tokens_stays_text(names):
    tokenizer = Tokenizer(tiny_fim_tokenizer((*names, "<|im_end|>")), 320)
    gap = Gap(f"{SPELLED}\n{SPELLED}", SPELLED, (ContextFile(SPELLED, SPELLED),), SPELLED)
    empty = replace(gap, prefix="", suffix="", context=(ContextFile("", ""),), path="")
    prompts = [prompt_of(each, Budget(4000, 2000), tokenizer).prompt for each in (gap, empty)]
    controls = {tokenizer.vocabulary[name] for name in (*names, "<|im_end|>", "<|endoftext|>")}
    spelled, plain = ([i for i in prompt.token_ids if i in controls] for prompt in prompts)
    assert spelled == plain
    prompt = gap_prompt(gap, None, tokenizer, Budget(4000, 2000)).prompt
    assert prompt.token_ids == (tokenizer.start_token_id,)
    assert prompt.text == f"{SPELLED}\n\n{SPELLED}\n{SPELLED}"


def test_tokenizer_without_a_start_token_gets_plain_text():
    class Startless(SentencePieceLike):
        start_token_id = None

        def encode(self, text):
            return list(text.encode())

    assert prefix_prompt(Gap("x = "), Startless(), ROOMY).prompt == "x = "
    assert prefix_prompt(Gap("x = "), SentencePieceLike(), ROOMY).prompt == PrefixedText((256,), "x = ")


def test_typing_a_line_changes_nothing_before_it():
    """Otherwise the prefix cache could not be used."""
    budget = Budget(60, 0)
    text = "the quick brown fox\n" * 20
    prompts = [prompt_of(Gap(text + "over the lazy dog"[:end], "\nend\n" * 9), budget).prompt for end in range(18)]
    assert all(length(prompt) <= 60 for prompt in prompts)
    assert len({prompt.token_ids for prompt in prompts}) <= 3  # cut in steps, not with every token


def test_code_llamas_prompt_has_no_extra_space():
    tokenizer = SentencePieceLike()
    prompt = fim_prompt(Gap("x\nfoo", ")"), find_fim_tokens(tokenizer.vocabulary), tokenizer, ROOMY)
    assert prompt.prompt == PrefixedText((256, 257, *b"x\n", 258, *b")", 259), "foo")


def test_files_come_first_with_their_names():
    context = (ContextFile("a.py", "A = 1\n"), ContextFile("b.py", "B = 2\n"))
    prompt = prompt_of(Gap("B", "\n", context, "c.py"))
    assert shown(prompt.prompt) == (
        "<|repo_name|>project\n<|file_sep|>a.py\nA = 1\n\n<|file_sep|>b.py\nB = 2\n\n<|file_sep|>c.py\n"
        "<|fim_prefix|><|fim_suffix|>\n<|fim_middle|>B"
    )


def test_a_path_counts_as_much_as_text_and_is_not_encoded_if_it_cannot_fit():
    class Counting:
        vocabulary, start_token_id = QWEN.vocabulary, QWEN.start_token_id
        num_chars = 0

        def encode(self, text):
            return QWEN.encode(text)

        def encode_inside(self, text):
            self.num_chars += len(text)
            return QWEN.encode_inside(text)

    for context, num_chars in (
        ((ContextFile("a.py", "A = 1\n"), ContextFile("1" * 1_000_000, "")), 100),
        ((ContextFile("a.py", "A = 1\n"), ContextFile("1" * 4000, "1" * 5000)), 100),
    ):
        tokenizer = Counting()
        prompt_of(Gap("x", "", context), tokenizer=tokenizer)
        assert tokenizer.num_chars < num_chars


def test_name_of_a_file_is_told_where_there_is_little_text():
    gap = Gap("fn ma", "", path="src/main.rs")
    assert shown(prompt_of(gap).prompt).startswith("<|repo_name|>project\n<|file_sep|>src/main.rs\n<|fim_prefix|>")
    for without in (replace(gap, path=""), replace(gap, prefix="x = 1\n" * 60)):
        assert shown(prompt_of(without).prompt).startswith("<|fim_prefix|>")


def test_without_a_file_separator_the_context_comes_above():
    prompt = prompt_of(Gap("B", "\n", (ContextFile("a.py", "A = 1"),)), tokenizer=STARCODER)
    assert shown(prompt.prompt, STARCODER) == "<fim_prefix>A = 1\n\n<fim_suffix>\n<fim_middle>B"


def test_context_has_its_own_limit_and_consists_of_the_last_whole_files():
    files = tuple(ContextFile("", letter * 20) for letter in "abcdefgh")
    kept = [
        [letter for letter in "abcdefgh" if letter * 20 in shown(prompt_of(Gap(prefix, "", files), budget).prompt)]
        for prefix, budget in (("", Budget(200, 100)), ("x\n" * 40, Budget(200, 100)), ("", Budget(1000, 100)))
    ]
    assert kept[0] == kept[1] == kept[2] == list("abcdefgh")[-len(kept[0]) :]
    assert 2 <= len(kept[0]) <= 5


@pytest.mark.parametrize(
    ("num_prefix", "num_suffix", "kept_prefix", "kept_suffix"),
    [
        (10, 10, 10, 10),
        (200, 10, (60, 67), 10),
        (10, 200, 10, (58, 67)),
        (200, 200, (50, 58), 19),  # a quarter for the suffix
    ],
)
def test_text_that_does_not_fit_is_cut(num_prefix, num_suffix, kept_prefix, kept_suffix):
    gap = Gap("q\n" * (num_prefix // 2), "z\n" * (num_suffix // 2))
    prompt = prompt_of(gap, Budget(80, 0))
    text = shown(prompt.prompt)
    assert length(prompt.prompt) <= 80
    before = text.removeprefix("<|fim_prefix|>").partition("<|fim_suffix|>")[0]
    after = text.partition("<|fim_suffix|>")[2].partition("<|fim_middle|>")[0]
    assert gap.prefix.endswith(before)
    assert gap.suffix.startswith(after)
    for part, kept in ((before, kept_prefix), (after, kept_suffix)):
        low, high = kept if isinstance(kept, tuple) else (kept, kept)
        assert low <= len(part) <= high
    assert prompt.is_truncated == (len(before) < num_prefix or len(after) < num_suffix)


@given(st.text(max_size=300), st.text(max_size=300), st.integers(4, 60), st.integers(0, 30))
def test_no_prompt_exceeds_its_budget(prefix, suffix, room, context_room):
    for tokenizer in (QWEN, STARCODER, CODESTRAL):
        gap = Gap(prefix, suffix, (ContextFile("f", suffix),))
        budget = Budget(room + context_room + 20, context_room)
        prompt = prompt_of(gap, budget, tokenizer)
        assert length(prompt.prompt, tokenizer) <= budget.max_tokens
        assert prefix.endswith(prompt.prompt.text)
    plain = prefix_prompt(Gap(prefix), PLAIN, Budget(room, 0))
    assert length(plain.prompt, PLAIN) <= room
    assert prefix.endswith(plain.prompt.text)
    assert plain.is_truncated == (plain.prompt.text != prefix)


def test_plain_prompt_is_text_with_the_context_before_it():
    prompt = gap_prompt(Gap("x = ", "\n", (ContextFile("a.py", "A = 1"),)), None, PLAIN, ROOMY)
    assert prompt.prompt == PrefixedText((PLAIN.start_token_id,), "A = 1\n\nx = ")


def test_typing_does_not_change_the_beginning_of_a_long_plain_prompt():
    text = "The quick brown fox jumps over the lazy dog. " * 30
    prompts = [prefix_prompt(Gap(text[:end]), PLAIN, Budget(100, 0)).prompt.text for end in range(900, 960)]
    same = [later.startswith(earlier) for earlier, later in itertools.pairwise(prompts)]
    assert same.count(False) <= 2


def test_the_engine_accepts_the_end_tokens():
    fim = find_fim_tokens(QWEN.vocabulary)
    tokenizer = Tokenizer(tiny_fim_tokenizer(), 320, fim.end_token_ids)
    assert QWEN.vocabulary["<|file_sep|>"] in tokenizer.eos_token_ids
