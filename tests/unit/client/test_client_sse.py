"""The parser of server-sent events, and the retry hints."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superdraft.client import RetryPolicy
from superdraft.client import sse as sse_module
from superdraft.client.errors import InvalidAnswerError, ServerError
from superdraft.client.retries import retry_after_s, should_retry
from superdraft.client.sse import EventParser


def parsed(*chunks):
    parser = EventParser()
    return [data for chunk in chunks for data in parser.feed(chunk)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"data: a\n\n", ["a"]),
        (b"data:a\ndata\ndata:  b\n\n", ["a\n\n b"]),
        (b"data: a", []),
        (b"data: a\n", []),
        (b"\n\n\r\r\n: comment\n\nevent: only\n\n", []),
        (b"datab: a\nDATA: b\n\n", []),
        (b"data: a:b\r\n\r\ndata: c\r\r", ["a:b", "c"]),
        (b"data:\n\n", [""]),
        ("data: \u2028\x85\x0b\x0c\n\n".encode(), ["\u2028\x85\x0b\x0c"]),  # no line ends here
        (b"data: \xef\xbb\xbf\n\n", ["\ufeff"]),
    ],
)
def test_fields(content, expected):
    assert parsed(content) == expected
    assert parsed(*(content[i : i + 1] for i in range(len(content)))) == expected


def test_line_break_between_chunks_is_one():
    assert parsed(b"data: a\r", b"\ndata: b\r", b"", b"\n\r", b"\n") == ["a\nb"]


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), max_size=4),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.data(),
)
def test_cuts_make_no_difference(events, line_end, data):
    content = "".join(f"data: {event}{line_end}:{line_end}{line_end}" for event in events).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    edges = [0, *cuts, len(content)]
    chunks = [content[start:end] for start, end in itertools.pairwise(edges)]
    assert parsed(*chunks) == events


def test_endless_event_is_refused(monkeypatch):
    monkeypatch.setattr(sse_module, "MAX_EVENT_BYTES", 1 << 20)
    line = b"data: " + b"x" * 1000 + b"\n"
    with pytest.raises(InvalidAnswerError, match="larger than 1 MiB"):
        parsed(*[line] * 2000)
    enough = EventParser()
    for _ in range(2000):  # the limit is that of an event
        assert list(enough.feed(line + b"\n")) == ["x" * 1000]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 60.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0.0),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after_s(headers, now_s=lambda: 40.0) == seconds


@pytest.mark.parametrize(("value", "meaning"), [("true", True), (" FALSE ", False), ("maybe", None), (None, None)])
def test_should_retry(value, meaning):
    assert should_retry({} if value is None else {"x-should-retry": value}) is meaning


def test_pauses_grow_to_a_limit():
    policy = RetryPolicy(max_retries=9, first_delay_s=1.0, max_delay_s=5.0)
    error = ServerError("x", status=500)
    assert [policy.delay_s(error, count, chance=lambda: 0.0) for count in range(4)] == [1, 2, 4, 5]
    assert policy.delay_s(error, 0, chance=lambda: 1.0) == 0.75
    assert policy.delay_s(error, 9) is None
