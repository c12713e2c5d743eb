"""Broken joints and the list of words by which they are told."""

import pytest
from support.models import tiny_tokenizer

from superdraft.evaluation.cases import word_list
from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.cases.word_list import WordList, known_words
from superdraft.evaluation.measures.joints import Joint, JointCount, count_joints, is_broken, joint_of
from superdraft.server.errors import CommandError

WORDS = WordList(["appointment", "that", "at", "don't", "known", "for"])


def prompt(text, reference="x", domain="mail", **more):
    return Prompt("p", domain, text, reference, **more)


@pytest.mark.parametrize(
    ("text", "draft", "expected"),
    [
        ("an appointme", "nt at noon", Joint("appointment", is_open=False)),
        ("an appointme", "nt", Joint("appointment", is_open=True)),
        ("an appointme", " at noon", Joint("appointme", is_open=False)),
        ("appointme", "nt, or", Joint("appointment", is_open=False)),
        ("I don", "'t know", Joint("don't", is_open=False)),
        ("I don'", "t know", Joint("don't", is_open=False)),
        ("well-kno", "wn.", Joint("known", is_open=False)),
        ("thank you for ", "your", None),  # nothing is joined
        ("thank you,", "x", None),
        ("an appointme", "", None),
        ("on Thurs", "day", None),  # a name
        ("in 19", "99", None),
        ("self.na", "me = 1", None),
        ("call(na", "me_of)", None),
        ("an appointme", "nt(x)", None),
        ("see www", ".example.org", None),
    ],
)
def test_the_joint_is_the_word_at_the_cursor(text, draft, expected):
    assert joint_of(text, draft) == expected


@pytest.mark.parametrize(
    ("text", "draft", "expected"),
    [
        ("an appointme", "nt at", False),
        ("an appointme", "nts at", False),  # a regular ending
        ("an appointme", " at", True),
        ("an appointme", "nted at", False),
        ("an appointme", "ntness at", True),
        ("an appoin", "tm", False),  # may become one
        ("an appoin", "tx", True),
        ("th", " at", True),
        ("thank you for", " your", False),
    ],
)
def test_a_joint_is_broken_if_it_is_no_word(text, draft, expected):
    assert is_broken(prompt(text), draft, WORDS) is expected


def test_code_is_not_judged():
    assert is_broken(prompt("retu"), "rx y", WORDS)
    assert not is_broken(prompt("retu", domain="code"), "rx y", WORDS)


def test_first_drafts_drafts_and_requests():
    assert count_joints(prompt("an appointme"), ["nt at", "nx", " at"], WORDS) == JointCount(False, 2, 3)
    assert count_joints(prompt("an appointme"), [" at"], WORDS) == JointCount(True, 1, 1)
    assert count_joints(prompt("an appointme"), [], WORDS) == JointCount(False, 0, 0)


def test_words_of_prompts_and_of_a_file(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("Zebra\nlion\n", encoding="utf-8")
    prompts = [prompt("It impro", "ves much", is_mid_word=True), prompt("We don\u2019t", "know")]
    words = known_words(prompts, file, "no model is needed")
    for word in ("improves", "much", "don't", "know", "zebra", "lions", "Lion's"):
        assert word in words
    for word in ("impro", "ves", "tknow"):
        assert word not in words
    assert words.has_start("impro")
    assert not words.has_start("improx")


def test_words_of_a_vocabulary_are_long_tokens_with_a_space_in_front(monkeypatch):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([" lobster", " lob", "lobsters", " x1234"])
    monkeypatch.setattr(word_list, "load_tokenizer", lambda model: tokenizer)
    words = known_words([], None, "tiny")
    assert [word in words for word in ("lobster", "lob", "x1234")] == [True, False, False]


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), (b"\n", "no words"), (b"\xff", "UTF-8")])
def test_errors_of_the_file(tmp_path, content, message):
    file = tmp_path / "words.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CommandError, match=message):
        known_words([], file, "tiny")
