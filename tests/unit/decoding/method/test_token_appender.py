"""`TokenAppender`: stop strings across token borders, end of text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superdraft.decoding.method.draft_set import Draft, TokenAppender

TOKENS = (b"5", b",5", b",6", b"\n", b"a\n", b"\xc3", b"\xa9", b"")
EOS = 7


def append(token_ids: list[int], *stop: str) -> Draft:
    appender = TokenAppender(TOKENS, frozenset({EOS}), tuple(string.encode() for string in stop))
    draft = Draft()
    for token_id in token_ids:
        draft = appender(draft, token_id, draft.logprob - 1.0, -0.5)
        if draft.finish_reason:
            break
    return draft


def test_a_stop_string_that_overlaps_itself_is_found():
    draft = append([0, 1, 1, 2], "5,5,6")
    assert (draft.text, draft.finish_reason) == (b"5,", "stop")
    assert draft.token_ids == (0, 1, 1, 2)


def test_a_stop_string_inside_one_token_cuts_the_token():
    assert append([4], "\n").text == b"a"


def test_the_earliest_stop_string_wins():
    assert append([0, 1, 1], "5,5,5", ",5").text == b"5"


def test_a_stop_string_of_several_bytes_may_come_in_pieces():
    draft = append([0, 5, 6], "é")
    assert (draft.text, draft.finish_reason) == (b"5", "stop")


def test_end_of_text_adds_nothing():
    draft = append([0, EOS], "x")
    assert (draft.text, draft.token_ids, draft.finish_reason) == (b"5", (0,), "stop")


@given(
    st.lists(st.integers(0, 6), max_size=12),
    st.lists(st.sampled_from(["5", "5,", ",5,6", "5,5,6", "\n", "a\n", "a", "é", "\n\n"]), max_size=4),
)
def test_equals_a_search_in_the_whole_text(token_ids, stops):
    draft = append(token_ids, *stops)
    whole = b"".join(TOKENS[token_id] for token_id in token_ids)
    # The draft ends at the stop string that is complete first; of several that one token completes, at the one that
    # begins first.
    ends = {len(b"".join(TOKENS[t] for t in token_ids[: i + 1])) for i in range(len(token_ids))}
    complete = [(whole.find(s.encode()), len(s.encode())) for s in stops if s.encode() in whole]
    if not complete:
        assert (draft.text, draft.finish_reason) == (whole, None)
        return
    seen = min(min(end for end in ends if end >= start + length) for start, length in complete)
    start = min(start for start, length in complete if start + length <= seen)
    assert (draft.text, draft.finish_reason) == (whole[:start], "stop")


@pytest.mark.parametrize("stops", [("5",), ("5,5",)])
def test_a_finished_draft_keeps_the_tokens_that_were_decoded(stops):
    assert append([0, 1], *stops).finish_reason == "stop"
