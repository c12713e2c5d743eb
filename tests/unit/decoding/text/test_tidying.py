"""Drafts are tidied for display: what a person should not see is cut off, and a draft of nothing else is dropped."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from superdraft.decoding.text.tidying import ARTICLES, PREPOSITIONS, is_english, is_punctuation, tidy

OPEN_WORDS = [*ARTICLES.split(), *PREPOSITIONS.split()]
WORDS = st.sampled_from(
    [*OPEN_WORDS, "cat", "you", "don't", "10", "3.5", "voy", "Haus", ".", ",", '"', "(", "```", "?", "🙂"]
)
GAPS = st.sampled_from([" ", " ", " ", "", "\n", "\n\n", "\n    "])
DRAFTS = st.lists(st.tuples(GAPS, WORDS), max_size=8).map(lambda parts: "".join(gap + word for gap, word in parts))
LAST_TOKENS = st.none() | st.sampled_from([" the", " cat", "t", "0", ".", "\n"])
ENGLISH = "Could you tell me "


@pytest.mark.parametrize(
    ("before", "draft", "last_token", "shown"),
    [
        ("Thank you", " for the", " the", ""),
        ("Thank you for", " your help with the", " the", " your help"),
        ("Thank you for", " your help with the", None, " your help with the"),  # it ends where it should
        ("I want you t", "o", "o", "o"),  # the person has begun the word
        ("Press the butt", "on", "on", "on"),
        ("Can you read the", " the book", " book", ""),
        ("Can you read the ", "the book", " book", ""),
        ("Can you read", " the the book", " book", ""),
        ("Can you read", " it in the the end", " end", " it"),
        ("Thank you", " very much .", ".", " very much"),
        ("Thank you ", ".", ".", ""),
        ("You owe me", " 3 . 5", "5", " 3"),
        ("Are you", " coming?\n\n", "\n\n", " coming?"),
        ("Are you", " coming?\n\nI", "I", " coming?"),
        ("Are you", " coming? I", " I", " coming?"),
        ("Are you", " coming? I'm so", " so", " coming?"),
        ("Are you", " coming? I would love that", " that", " coming? I would love that"),
        ("It starts at", " 10:3", "3", ""),
        ("It starts at", " noon and lasts 1", "1", " noon and lasts"),
        ("we should def", "initely use typing_", "_", "initely use"),
        ("we should def", "initely", "initely", "initely"),
        ("we should def", "inite", "te", ""),  # two tokens, so perhaps half a word
        ("She said", ' to me "', ' "', " to me"),
        ("That's it", " )):", ":", ""),
        ("I love it", " 🙂", " 🙂", " 🙂"),
        ("", "\n\n  ", None, ""),
        ("x = (", "1 + 2)", None, "1 + 2)"),
        ("return a + ", "b\n```\n\nThis code", " code", "b"),
        ("return a + b\n", "```\n\nThis code adds two numbers", " numbers", ""),
        ("```python\nreturn a + ", "b\n```", None, "b\n```"),  # it closes the fence
        ("def f(n):\n    if n:", "\n        return 0\n    elif n == 1:", ":", "\n        return 0\n    elif n == 1:"),
        ("def f(n):", "\n    return n\ndef f_", "_", "\n    return n"),
        ("git add", " .", None, ""),  # only for display, and a word of one character is soon typed
        ("obj", " .field", None, " .field"),
    ],
)
def test_shown(before, draft, last_token, shown):
    assert tidy(draft, before, last_token) == shown


@pytest.mark.parametrize(
    ("before", "draft", "last_token"),
    [
        ("El lunes voy", " a a", " a"),  # Spanish
        ("El lunes voy", " a", " a"),
        ("Wir wohnen", " in", " in"),  # German
        ("Il costo", " per", " per"),  # Italian
        ("Ik ga", " of", " of"),  # Dutch
        ("On y va", " on", " on"),  # French
    ],
)
def test_other_languages_keep_words_that_look_english(before, draft, last_token):
    assert tidy(draft, before, last_token) == draft


def test_english_is_known_by_words_of_its_own():
    assert is_english("Thank you")
    assert is_english("I don\u2019t know")
    assert not is_english("Wir wohnen in Berlin, und das ist gut so")
    assert not is_english("On va a la plage avec les amis")
    assert not is_english("")


@given(DRAFTS, LAST_TOKENS)
def test_a_beginning_without_a_blank_end_or_nothing(draft, last_token):
    shown = tidy(draft, ENGLISH, last_token)
    assert draft.startswith(shown)
    assert shown == shown.rstrip()
    assert not shown or not is_punctuation(shown)


@given(DRAFTS, LAST_TOKENS)
@example(" a .a", " the")
def test_what_is_shown_has_no_doubled_words_and_no_spaced_full_stop(draft, last_token):
    text = ENGLISH + tidy(draft, ENGLISH, last_token)
    doubled = re.search(rf"\b({'|'.join(OPEN_WORDS)}) +\1\b", text)
    assert doubled is None
    assert re.search(r"\w +[.,](\s|$)", text) is None


@given(DRAFTS)
def test_an_ended_draft_does_not_stop_at_an_open_word(draft):
    shown = tidy(draft, ENGLISH, " cat")
    if shown and "\n" not in draft:
        assert re.search(rf"(^|\s)({'|'.join(OPEN_WORDS)})$", shown) is None


@given(DRAFTS, LAST_TOKENS)
def test_tidying_what_is_shown_changes_nothing(draft, last_token):
    shown = tidy(draft, ENGLISH, last_token)
    assert tidy(shown, ENGLISH) == shown


@given(st.lists(st.sampled_from(["chat", "Haus", "перо", "mesa", "10a"]), min_size=1, max_size=5))
def test_a_finished_draft_of_plain_words_is_shown_whole(words):
    draft = " " + " ".join(words)
    assert tidy(draft, "Wort ") == draft
