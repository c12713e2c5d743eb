"""Drafts cut where the text after the gap begins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superdraft.decoding.gap_cut import cut_overlap


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
