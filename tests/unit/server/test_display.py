"""What is shown of drafts while they grow."""

import pytest

from superdraft.decoding.outputs import DraftSnapshot, Snapshot
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.text.fim import Gap
from superdraft.server.display import Display

PARAMS = GenerationParams(selection="distinct")


@pytest.mark.parametrize(
    ("before", "text", "shown"),
    [
        ("I read the report.", " I", ""),  # of a sentence that has only begun
        ("I read the report.", "\n\n", ""),
        ("I apply for the position", " of a", ""),
        ("I apply for the position", " of engineer", " of engineer"),
        ("I read the report.", " It was", ""),
        ("I read the report.", " It was great", " It was great"),
        ("Please let me kn", "ow", "ow"),  # the word may go on, but it is what the person has begun
        ("Please let me kn", "ow if you", "ow if you"),
    ],
)
def test_a_growing_draft_shows_nothing_that_the_answer_would_not_show_if_it_ended_there(before, text, shown):
    snapshot = Snapshot(1, (DraftSnapshot(text, -0.5),), text, (1,))
    tidied = Display(Gap(before), 0.2, is_tidy=True).shown_so_far(snapshot, PARAMS)
    assert [draft.text for draft in tidied.drafts] == ([shown] if shown else [])
    assert (tidied.stable_text == "") == (shown == "")
    assert Display(Gap(before), 0.2).shown_so_far(snapshot, PARAMS) == snapshot  # without a trigger, as decoded


def test_inside_a_line_no_growing_draft_is_shown():
    snapshot = Snapshot(1, (DraftSnapshot(" very", -0.5),), " very", (1,))
    assert Display(Gap("Thank you", " much\n"), is_tidy=True).shown_so_far(snapshot, PARAMS).drafts == ()
