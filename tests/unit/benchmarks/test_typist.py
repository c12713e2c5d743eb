"""Where a simulated typist accepts a draft."""

import pytest

from superdraft.benchmarks.typist import fits


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        (" going", True),
        (" going to the moon", True),
        (" going ", True),
        (" go", False),  # ends inside a word
        (" going to the moons", False),
        (" Going", False),
        ("going", False),
    ],
)
def test_a_draft_fits_if_it_is_a_beginning_up_to_a_words_end(draft, expected):
    assert fits(draft, " going to the moon") is expected


def test_a_draft_may_end_before_a_punctuation_mark():
    assert fits(" gone", " gone, and")
    assert not fits(" gone", " gone-by")
