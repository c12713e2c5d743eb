"""What is shown of drafts while they grow, and of drafts with few tokens or none."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from superdraft.decoding.outputs import DraftOutput, DraftSnapshot, GenerationOutput, Snapshot, Timings, Usage
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


def test_a_growing_draft_without_text_is_not_shown():
    snapshot = Snapshot(1, (DraftSnapshot("", 0.0), DraftSnapshot(" a", -1.0)), "", (1,))  # half a character, a word
    assert [draft.text for draft in Display(Gap("x")).shown_so_far(snapshot, PARAMS).drafts] == [" a"]


def test_inside_a_line_no_growing_draft_is_shown():
    snapshot = Snapshot(1, (DraftSnapshot(" very", -0.5),), " very", (1,))
    assert Display(Gap("Thank you", " much\n"), is_tidy=True).shown_so_far(snapshot, PARAMS).drafts == ()


@st.composite
def short_drafts(draw):
    """At most two drafts of at most two tokens, cut anywhere, as trimming and stop strings do."""
    pieces = st.lists(
        st.sampled_from([" ", " a", "word", ".", "\n", "\ufffd", "\r", "\u0301", "\u200b", "```"]), max_size=2
    )
    drafts = []
    for index in range(draw(st.integers(0, 2))):
        tokens = draw(pieces)
        whole = "".join(tokens)
        text, score = whole[: draw(st.integers(0, len(whole)))], draw(st.sampled_from([0.0, -0.1, -5.0, -math.inf]))
        reason = draw(st.sampled_from(["stop", "length", "improbable"]))
        drafts.append(DraftOutput(index, text, tuple(range(len(tokens))), tuple(tokens), score, (), reason))
    return tuple(drafts)


@given(
    drafts=short_drafts(),
    before=st.sampled_from(["", "x = ", "I read it.", "\n", "the "]),
    after=st.sampled_from(["", "\n", " of it", ")", "\r\n"]),
    is_tidy=st.booleans(),
    minimum=st.sampled_from([0.0, 0.5, 1.0]),
)
@example(drafts=(DraftOutput(0, "", (), (), 0.0, (), "length"),), before="x = ", after="", is_tidy=True, minimum=0.0)
def test_drafts_of_few_tokens_or_none_are_shown_or_not_but_never_an_error(drafts, before, after, is_tidy, minimum):
    output = GenerationOutput("", drafts, Usage(0, 0, 0, 0), Timings(0, 0, 0, 0, 0), ())
    shown = Display(Gap(before, after), minimum, is_tidy=is_tidy).shown(output, PARAMS).drafts
    assert all(any(one.text.startswith(draft.text) for one in drafts) for draft in shown)
    assert [draft.index for draft in shown] == list(range(len(shown)))
    assert not is_tidy or all(draft.text for draft in shown)
