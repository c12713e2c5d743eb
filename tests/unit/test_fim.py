"""Prompts for a gap: the layout of each family, the room, what typing leaves as it was; drafts cut at the suffix."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models import QWEN_FIM, STARCODER_FIM, tiny_fim_tokenizer, tiny_tokenizer

from superdraft.decoding.fim import (
    Budget,
    ContextFile,
    Gap,
    cut_overlap,
    fim_prompt,
    find_fim_tokens,
    gap_prompt,
    prefix_prompt,
)
from superdraft.decoding.tokenizer import Tokenizer

ROOMY = Budget(1000, 500)
PLAIN = Tokenizer(tiny_tokenizer())
QWEN = Tokenizer(tiny_fim_tokenizer(), 320)
STARCODER = Tokenizer(tiny_fim_tokenizer(STARCODER_FIM), 320)


def shown(token_ids, tokenizer=QWEN):
    """The prompt as one string, special tokens by name."""
    return "".join(tokenizer.token_text(i) for i in token_ids)


def prompt_of(gap, budget=ROOMY, tokenizer=QWEN):
    return gap_prompt(gap, find_fim_tokens(tokenizer.vocabulary), tokenizer, budget)


class SentencePieceLike:
    """Code Llama's manners: a token in front of every text, and a space before its first word. One token a byte."""

    names = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
    vocabulary = (
        {f"<0x{i:02X}>": i for i in range(256)} | {"<s>": 256} | {name: 257 + i for i, name in enumerate(names)}
    )
    token_bytes = (*(bytes([i]) for i in range(256)), *[b""] * 5)

    def encode(self, text):
        return [256, *(b" " + text.encode() if text else b"")]


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


def test_file_tokens_alone_do_not_fill_gaps():
    assert find_fim_tokens({"<file_sep>": 1, "<repo_name>": 2, "<|endoftext|>": 0}) is None  # SmolLM2's


def test_what_ends_an_answer():
    names = {name: i for i, name in enumerate((*QWEN_FIM, "<|endoftext|>", "<|im_start|>"))}
    fim = find_fim_tokens(names)
    assert fim is not None
    assert {name for name, i in names.items() if i in fim.end_token_ids} == {*QWEN_FIM, "<|endoftext|>"}


def test_typed_line_comes_after_the_middle_token():
    prompt = prompt_of(Gap("def f(a):\n    ret", " a\n"))
    assert shown(prompt.prompt) == "<|fim_prefix|>def f(a):\n<|fim_suffix|> a\n<|fim_middle|>    ret"
    assert not prompt.is_truncated


def test_typing_a_line_changes_nothing_before_it():
    """What the prefix cache lives on."""
    budget = Budget(60, 0)
    text = "the quick brown fox\n" * 20
    prompts = [prompt_of(Gap(text + "over the lazy dog"[:end], "\nend\n" * 9), budget).prompt for end in range(18)]
    middle = find_fim_tokens(QWEN.vocabulary).middle
    heads = [tuple(prompt[: prompt.index(middle)]) for prompt in prompts]
    assert all(len(prompt) <= 60 for prompt in prompts)
    assert len(set(heads)) <= 3  # cut in steps, not with every token


def test_code_llamas_prompt_has_no_space_that_the_text_has_not():
    tokenizer = SentencePieceLike()
    prompt = fim_prompt(Gap("x\nfoo", ")"), find_fim_tokens(tokenizer.vocabulary), tokenizer, ROOMY)
    assert prompt.prompt == [256, 257, *b"x\n", 258, *b")", 259, *b"foo"]


def test_files_come_first_with_their_names():
    context = (ContextFile("a.py", "A = 1\n"), ContextFile("b.py", "B = 2\n"))
    prompt = prompt_of(Gap("B", "\n", context, "c.py"))
    assert shown(prompt.prompt) == (
        "<|repo_name|>project\n<|file_sep|>a.py\nA = 1\n\n<|file_sep|>b.py\nB = 2\n\n<|file_sep|>c.py\n"
        "<|fim_prefix|><|fim_suffix|>\n<|fim_middle|>B"
    )


def test_model_without_files_gets_the_context_above():
    prompt = prompt_of(Gap("B", "\n", (ContextFile("a.py", "A = 1"),)), tokenizer=STARCODER)
    assert shown(prompt.prompt, STARCODER) == "<fim_prefix>A = 1\n\n<fim_suffix>\n<fim_middle>B"


def test_context_has_a_share_of_its_own_and_holds_whole_files_the_last_ones():
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
        (10, 200, 10, 67),
        (200, 200, (50, 58), 19),  # a quarter for the suffix
    ],
)
def test_what_does_not_fit_is_cut(num_prefix, num_suffix, kept_prefix, kept_suffix):
    gap = Gap("q\n" * (num_prefix // 2), "z\n" * (num_suffix // 2))
    prompt = prompt_of(gap, Budget(80, 0))
    text = shown(prompt.prompt)
    assert len(prompt.prompt) <= 80
    before = text.removeprefix("<|fim_prefix|>").partition("<|fim_suffix|>")[0]
    after = text.partition("<|fim_suffix|>")[2].partition("<|fim_middle|>")[0]
    assert gap.prefix.endswith(before)
    assert gap.suffix.startswith(after)
    low, high = kept_prefix if isinstance(kept_prefix, tuple) else (kept_prefix, kept_prefix)
    assert low <= len(before) <= high
    assert len(after) == kept_suffix
    assert prompt.is_truncated == (len(before) < num_prefix or len(after) < num_suffix)


@given(st.text(max_size=300), st.text(max_size=300), st.integers(4, 60), st.integers(0, 30))
def test_no_prompt_is_longer_than_its_room(prefix, suffix, room, context_room):
    for tokenizer in (QWEN, STARCODER):
        gap = Gap(prefix, suffix, (ContextFile("f", suffix),))
        prompt = prompt_of(gap, Budget(room + context_room + 20, context_room), tokenizer)
        assert len(prompt.prompt) <= room + context_room + 20
    plain = prefix_prompt(Gap(prefix), PLAIN, Budget(room, 0))
    assert len(PLAIN.encode(plain.prompt)) <= room
    assert prefix.endswith(plain.prompt)
    assert plain.is_truncated == (plain.prompt != prefix)


def test_plain_prompt_is_text_with_the_context_before_it():
    prompt = gap_prompt(Gap("x = ", "\n", (ContextFile("a.py", "A = 1"),)), None, PLAIN, ROOMY)
    assert prompt.prompt == "A = 1\n\nx = "


def test_typing_leaves_the_beginning_of_a_long_plain_prompt():
    text = "The quick brown fox jumps over the lazy dog. " * 30
    prompts = [prefix_prompt(Gap(text[:end]), PLAIN, Budget(100, 0)).prompt for end in range(900, 960)]
    same = [later.startswith(earlier) for earlier, later in itertools.pairwise(prompts)]
    assert same.count(False) <= 2


@pytest.mark.parametrize(
    ("draft", "suffix", "shown_text"),
    [
        ("foo)", ")", "foo"),
        ("foo)\nbar", ")\nbaz", "foo"),  # the whole line, although the next one differs
        ("f(x) + y", ")", "f(x) + y"),  # closes its own parenthesis
        ("x\n    return y", "\n    return y\n}\n", "x"),
        ("x\n    ret", "\n    return y\n}\n", "x"),  # cut off in the middle of the suffix
        ("x\n    return y\n    z", "\n    return y\n}\n", "x"),
        ("x\n    return yes", "\n    return y\n}\n", "x\n    return yes"),
        (" the cat and", " and the dog", " the cat"),
        ("foo", "", "foo"),
        ("foo", "\n\n", "foo"),
        ("foo\nbar", "\n\n", "foo\nbar"),
        (")", ")", ""),
        ("", ")", ""),
    ],
)
def test_draft_ends_where_the_suffix_begins(draft, suffix, shown_text):
    assert cut_overlap(draft, suffix) == shown_text


@given(st.text("ab)\n ", max_size=12), st.text("ab)\n ", max_size=12))
def test_only_what_the_suffix_says_anyway_is_cut(draft, suffix):
    kept = cut_overlap(draft, suffix)
    taken = draft[len(kept) :]
    assert draft.startswith(kept)
    first_line = suffix[: len(suffix) - len(suffix.lstrip())] + suffix.lstrip().partition("\n")[0]
    assert suffix.startswith(taken) or (suffix.strip() and taken.startswith(first_line + "\n"))


def test_end_tokens_can_be_given_to_the_engine():
    fim = find_fim_tokens(QWEN.vocabulary)
    tokenizer = Tokenizer(tiny_fim_tokenizer(), 320, fim.end_token_ids)
    assert QWEN.vocabulary["<|file_sep|>"] in tokenizer.eos_token_ids
