"""Trimming of drafts for display."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superdraft.decoding.text.trimming import as_read, ends_word, stable_prefix, tokens_within, trim_text

PROSE = st.text(st.sampled_from("ab I.!?,-'\"\n\r 3。日é)…\u0301"), max_size=25) | st.text(max_size=15)


def by_word(text, finish_reason="length", **options):
    return trim_text(text, finish_reason, False, "word", **options)


def by_sentence(text, finish_reason="length"):
    return trim_text(text, finish_reason, False, "sentence")


@given(
    PROSE,
    st.sampled_from(["length", "stop"]),
    st.booleans(),
    st.sampled_from(["none", "word", "sentence"]),
    st.booleans(),
)
def test_trimmed_text_is_a_prefix_and_trimming_it_again_changes_nothing(text, finish, single_line, trim, complete):
    shown = trim_text(text, finish, single_line, trim, complete)
    assert text.startswith(shown)
    assert trim_text(shown, "stop", single_line, trim) == shown
    if trim != "none":
        assert shown == shown.rstrip()
    if single_line:
        assert not set(shown) & set("\n\r\x85\u2028\u2029")


@given(PROSE)
def test_nothing_is_trimmed_unless_asked(text):
    assert trim_text(text, "length", False, "none") == text


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\x85", "\u2028", "\u2029"])
def test_a_single_line_ends_before_the_first_line_break(line_break):
    assert trim_text(f"one {line_break}two{line_break}", "length", True, "none") == "one "
    assert trim_text(f"{line_break}two", "length", True, "none") == ""


def test_a_word_before_a_line_break_is_complete():
    assert trim_text("the one\ntw", "length", True, "word") == "the one"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ements to type inf", "ements to type"),
        (" one two ", " one two"),
        (" one two.", " one two."),
        (" one, ", " one,"),
        (" one (two", " one ("),
        (" well-kno", ""),
        (" is well-", " is"),
        (" we don't", " we"),
        (" we don'", " we"),
        (" about 3.1", " about"),
        (" at 10:3", " at"),
        (" see example.co", " see"),
        (" x = self.foo_ba", " x ="),
        (" f(a_b", " f("),
        ("half", ""),
        ("'half", "'"),
        ("", ""),
        (" un cafe\u0301", " un"),
        ("東京に行", "東京に行"),
        ("東京のTok", "東京の"),
        ("สวัสดี", "สวัสดี"),
        (" 한국어 단", " 한국어"),
        (" वह क्\u200dष", " वह"),
        (" good ❤\ufe0f", " good ❤\ufe0f"),
        (" good 👍", " good 👍"),
    ],
)
def test_a_last_word_that_may_be_incomplete_is_cut(text, shown):
    assert by_word(text) == shown


def test_a_last_word_that_is_known_to_be_complete_stays():
    assert by_word(" one two ", "stop") == " one two"
    assert by_word(" one two", last_word_complete=True) == " one two"
    assert by_word("half", last_word_complete=True) == "half"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" see you. Then we", " see you."),
        (" see you! Then", " see you!"),
        (" oh, Dr! Then", " oh, Dr!"),
        (" really?! Then", " really?!"),
        (' he said "go." Then', ' he said "go."'),
        (" (or not.) Then", " (or not.)"),
        (" said “go!” Then", " said “go!”"),
        (" wait… What", " wait…"),
        (" wait... What", " wait..."),
        (" the end.\nNext", " the end."),
        (". And then", "."),
        (" see you.", " see you."),
        (" 行きます。それ", " 行きます。"),
        ("「行く\uff01」と", "「行く\uff01」"),
        (" about 3.5 of them. So", " about 3.5 of them."),
        (" in 2024. So", " in 2024."),
        (" in option 3. So", " in option 3."),
        (" run main.py first. So", " run main.py first."),
        (" ask Dr. Smith. So", " ask Dr. Smith."),
        (" fruit, e.g. pears. So", " fruit, e.g. pears."),
        (" at 5 p.m. on Monday. So", " at 5 p.m. on Monday."),
        (" J. R. Smith came. So", " J. R. Smith came."),
        (" her Ph.D. thesis. So", " her Ph.D. thesis."),
        (" so am I. Then", " so am I."),
        ("\n1. Buy milk. Then", "\n1. Buy milk."),
        (" see example.com. Then", " see example.com."),
        (" क्या है। फिर", " क्या है।"),
    ],
)
def test_a_sentence_is_cut_after_its_end_and_not_at_other_stops(text, shown):
    # More words than the word rule would cut, so a missed or wrong sentence end is noticed.
    assert by_sentence(text + " come and se") == shown


def test_without_a_sentence_end_the_word_rule_applies():
    assert by_sentence(" we talked to Dr. Smi") == " we talked to Dr."
    assert by_sentence(" we talked to Dr. Smith", "stop") == " we talked to Dr. Smith"


def test_a_sentence_end_within_the_line_counts_and_one_after_it_does_not():
    assert trim_text(" one. two\nthree.", "length", True, "sentence") == " one."
    assert trim_text(" one two\nthree. four", "length", True, "sentence") == " one two"


@pytest.mark.parametrize(
    ("texts", "prefix"),
    [
        ([], ""),
        ([b" the end"], " the end"),
        ([b" the end", b" the start"], " the "),
        ([b"a", b""], ""),
        (["é".encode(), "è".encode()], ""),
        (["aé".encode(), "aé!".encode()], "aé"),
        ([b"a\xc3", b"a\xc3"], "a"),
        ([b"\xffa", b"\xffb"], "\ufffd"),
    ],
)
def test_the_stable_prefix_is_common_to_all_in_whole_characters(texts, prefix):
    assert stable_prefix(texts) == prefix


@given(st.lists(st.text("aé日", max_size=4), min_size=1, max_size=4))
def test_no_longer_prefix_is_common(texts):
    prefix = stable_prefix([text.encode() for text in texts])
    assert all(text.startswith(prefix) for text in texts)
    longer = {text[: len(prefix) + 1] for text in texts}
    assert len(longer) > 1 or longer == {prefix}


@pytest.mark.parametrize(("num_bytes", "expected"), [(0, 0), (1, 1), (3, 1), (4, 2), (5, 3), (6, 4), (9, 4)])
def test_tokens_that_cover_the_first_bytes_are_counted(num_bytes, expected):
    assert tokens_within([b" th", b"e", b"x", b"yz"], num_bytes) == expected


def test_a_token_without_bytes_counts_only_before_the_end():
    assert tokens_within([b"", b"a", b""], 1) == 2
    assert tokens_within([], 3) == 0


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("ding.\n\n", "ding."),
        ("ding. ", "ding."),
        ("\n\ndef f():", "\ndef f():"),
        ("\n\n\ndef f():", "\ndef f():"),
        ("a: \n    b", "a:\n\n    b"),
        ("a\r\n \r\n\tb", "a\n\tb"),
    ],
)
def test_texts_that_read_the_same(text, other):
    assert as_read(text) == as_read(other)


@pytest.mark.parametrize(
    ("text", "other"),
    [("a\n    b", "a\nb"), ("  a", "a"), ("a\nb", "a b"), ("a b", "a  b"), ("PM", "pm"), ("\n", "\n\n"), (" ", "")],
)
def test_texts_that_read_differently(text, other):
    assert as_read(text) != as_read(other)


@pytest.mark.parametrize(
    ("last", "following", "ends"),
    [
        ("t", " sat", True),
        ("t", "", True),
        (".", "\n", True),
        ("t", "s", False),
        ("t", ".", False),
        (" ", "sat", False),
        (" ", " ", False),
        ("", " sat", False),
        ("今", "日", True),
    ],
)
def test_a_word_ends_before_white_space_or_after_a_character_that_is_a_word(last, following, ends):
    assert ends_word(last, following) == ends
