"""Drafts are cut where they repeat the text after the gap: in a line, at brackets and quotes, at line ends."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.counting import num_calls

from superdraft.decoding.text.fim import Gap
from superdraft.decoding.text.gap_cut import cut_for_gap, has_text_after, joins, line_end_of, with_line_ends

DRAFTS = st.text("ab)( \n\r\t\"'", max_size=14) | st.lists(st.sampled_from(["a", "ab", ")", " a", "\n", "\r\n"])).map(
    "".join
)


@pytest.mark.parametrize(
    ("prefix", "draft", "suffix", "shown"),
    [
        # No text after the cursor, or blank lines only.
        ("a", "foo", "", "foo"),
        ("a", "foo\n\nbar", "", "foo\n\nbar"),
        ("a", "foo\nbar", "\n\n", "foo\nbar"),
        ("a", "foo\nbar\n", "\n\n  \n", "foo\nbar"),
        ("a", "", ")", ""),
        # A fence of a chat's answer.
        ("a = 1\n", "```\n\nThis code", "", ""),
        ("a = 1\n  ", "b\n```\nThis", "", "b"),
        ("a = 1", "```", "", "```"),
        ("a\n", "```py\nb", "", "```py\nb"),
        ("```py\nb\n", "```\n", "", "```\n"),
        # On an empty line, and after an indent.
        ("def f():\n", "    x = 1\n    return x", "\n    return x\n", "    x = 1"),
        ("def f():\n    ", "x = 1\n    return x", "\n    return x\n", "x = 1"),
        ("def f():\n    ", "return x", "\n    return x\n", ""),
        ("def f():\n    ", "return xs", "\n    return x\n", "return xs"),
        ("def f():\n\t", "x = 1\n\treturn x\n\ty", "\n\n\n\treturn x\n", "x = 1"),
        ("def f():\n\t", "x = 1\n    return x", "\n\treturn x\n", "x = 1\n    return x"),  # another indent
        ("x = ", "1\n\n\ny = 2", "\n\ny = 2\n", "1"),
        ("x = ", "1\ny", "\n\ny = 2\n", "1"),  # the draft ends inside the repeated line
        ("x = ", "1\ny = 23\n", "\n\ny = 2\n", "1\ny = 23"),
        ("if a:\n    ", "x\nelse:\n    y", "\nelse:\n    z\n", "x"),
        # Inside a line.
        ("the", " cat and", " and the dog", " cat"),
        ("the", " cat and the dog barked", " and the dog", " cat"),
        ("if ", "any", " and b", "any"),
        ("if", " a", " and b", " a"),  # not the beginning of " and"
        ("x = ", "y\nz", " + 1\n", "y"),
        ("x = ", "y\nz", "\n", "y\nz"),
        ("x = foo(", "self.y, self.x) + bar", "self.x)\n", "self.y, "),
        ("x", ", b", ",\n", ", b"),
        ("x", " = 1;\ny", ";\n", " = 1"),
        ("if x", ":\n    pass", ":\n", ""),
        ("    'zip':", "  (['.zip'], a),", "   (['.zip'], a),\n", ""),  # other blanks
        ("self.day", " = 1  # Monday", " = 1 # Monday\n", ""),
        ("x =", " a\t+ b", " + b\n", " a"),
        ("a", "b c", " b", "b c"),  # no blank is not another blank
        # Inside a word.
        ("re", "turn x", "turn x\n", ""),
        ("re", "turn x + 1", "turn x\n", ""),
        ("re", "turn", "turn x\n", ""),
        ("re", "turn xs", "turn x\n", "turn xs"),
        ("re", "place(a)\nb", "turn x\n", "place(a)"),
        ("get_", "user_name", "name()\n", "user_"),
        ("y = ma", "x first", "turn\n", "x first"),
        ("y = ", "max", "x\n", "max"),
        # After a bracket.
        ("f(", "foo)", ")", "foo"),
        ("f(", "foo)\nbar", ")\nbaz", "foo"),
        ("f(", "g(x) + y", ")", "g(x) + y"),
        ("f(", "g(x)", ")", "g(x)"),
        ("f(", "g(x))", ")", "g(x)"),
        ("f(a", ") + y", ")", ""),
        ("f(a, ", "b) + c", ")\n", "b"),
        ("f(", "a,\n    b,\n)", ")\n", "a,\n    b,\n"),
        ("f(", "\n    a,\n)\nb", "\n)\n", "\n    a,"),
        ("f(", "\n    g(\n    a\n)", "\n)\n", "\n    g(\n    a\n)"),
        ("f(g(a, ", "b)", ")", "b)"),  # closes one of two open brackets
        ("f(g(a, ", "b))", ")", "b)"),
        ("x[", "i] = [j]", "]", "i"),
        ("if (a) {", "\n  b\n}", "\n}\n", "\n  b"),
        # Inside a quote.
        ('x = "', 'hello"', '"\n', "hello"),
        ('x = "', 'hello"\ny = "', '"\n', "hello"),
        ('x = "', 'hello" + y', '"\n', "hello"),
        ('x = "', 'a" + "b', '"\n', 'a" + "b'),
        ('x = "', 'a" + "b" + c', '"\n', 'a" + "b'),
        ('"""', 'Say so."""\n', '"""\n', "Say so."),
        ('<a href="', 'b.html">B</a>', '">Link</a>\n', "b.html"),
        ('raise ValueError("', 'too long")', '" % name)\n', "too long"),
        ('f("', 'a", "b', '", 1)\n', 'a", "b'),
        ("f(", '"a" + ', '"b" + c)\n', '"a" + '),  # opens a string
        # The draft begins with the text after the cursor.
        ("a", " b c", " b", ""),
        ("a", " bc", " b", " bc"),
        # Both line ends.
        ("a\r\n", "x\r\ny", "\r\ny\r\nz", "x"),
        ("a\r\n", "x\ny", "\r\ny\r\nz", "x"),
        ("a\r\n", "x\r\ny\r\nw", "\r\n\r\nz", "x\r\ny\r\nw"),
        ("a\r\n", "x\r", "\r\n", "x"),
        ("a\r\n", "x\r\n", "\r\n", "x"),
        ("a\r\nb = ", "x\r\ny", " + 1\r\n", "x"),
    ],
)
def test_displayed_part_of_a_draft(prefix, draft, suffix, shown):
    assert cut_for_gap(draft, Gap(prefix, suffix)) == shown


@given(DRAFTS, DRAFTS, DRAFTS)
@example("", "a\n)", "\n)")
@example("", "\r\r", "")
@example("f(", "a\r)", ")")
@example("", "\r\na", "\r\n\r\na")
def test_displayed_part_is_a_prefix_and_is_not_cut_further(prefix, draft, suffix):
    gap = Gap(prefix, suffix)
    shown = cut_for_gap(draft, gap)
    assert draft.startswith(shown)
    assert not shown.endswith("\r")
    assert cut_for_gap(shown, gap) == shown


@given(DRAFTS, DRAFTS, DRAFTS)
@example("", "b\n a \nb", " \n a\n")
def test_no_line_repeats_the_next_line_after_the_gap_unless_it_closes_a_bracket(prefix, draft, suffix):
    shown = cut_for_gap(draft, Gap(prefix, suffix)).replace("\r\n", "\n")
    next_line = next((line for line in suffix.replace("\r\n", "\n").split("\n") if line.strip()), None)
    if next_line is not None and next_line.strip()[0] not in ")]}":
        assert next_line.rstrip() not in [line.rstrip() for line in shown.split("\n")[1:]]


@given(DRAFTS, st.text("ab", min_size=1, max_size=3), DRAFTS)
def test_draft_stays_on_its_line_if_more_than_closers_follow(draft, word, suffix):
    assert "\n" not in cut_for_gap(draft, Gap("x", f") {word}{suffix}"))


@given(DRAFTS, st.text("xy.", min_size=1, max_size=8), st.sampled_from(["", "\n", "\n\n", " \n"]))
def test_draft_that_shares_nothing_with_the_suffix_is_not_cut(draft, other, blank):
    suffix = f"{blank or chr(10)}{other}"
    kept = cut_for_gap(draft, Gap("z", suffix))
    assert draft[len(kept) :].strip() == ""


@given(DRAFTS, DRAFTS, DRAFTS)
def test_kind_of_line_end_does_not_matter(prefix, draft, suffix):
    plain = [text.replace("\r", "") for text in (prefix, draft, suffix)]
    unix = cut_for_gap(plain[1], Gap(plain[0], plain[2]))
    windows = [text.replace("\n", "\r\n") for text in plain]
    assert cut_for_gap(windows[1], Gap(windows[0], windows[2])) == unix.replace("\n", "\r\n")
    assert cut_for_gap(plain[1], Gap(windows[0], windows[2])) == unix


@pytest.mark.parametrize(
    ("prefix", "suffix", "line_end"),
    [("a\r\nb", "\nc", "\r\n"), ("a\nb", "\r\nc", "\n"), ("a", "b\r\nc\n", "\r\n"), ("a", "b", "\n"), ("", "", "\n")],
)
def test_line_end_is_the_nearest_to_the_cursor(prefix, suffix, line_end):
    assert line_end_of(Gap(prefix, suffix)) == line_end


def test_line_ends_become_uniform():
    assert with_line_ends("a\nb\r\nc", "\r\n") == "a\r\nb\r\nc"
    assert with_line_ends("a\nb\r\nc", "\n") == "a\nb\nc"


@pytest.mark.parametrize(
    ("draft", "suffix", "fits"),
    [
        (" at noon", " tomorrow.", True),
        ("at noon ", "tomorrow.", True),
        ("at noon", "tomorrow.", False),  # two words in one
        ("at noon ", " tomorrow.", False),  # two spaces
        (" at noon.", " tomorrow.", False),  # a small letter after a full stop
        (" at noon.", " Tomorrow is fine, too.", True),
        (" at noon!", ".", False),
        (" at noon ", ", or later", False),
        (" at noon", ", or later", True),
        ("", " tomorrow.", False),
        ("  ", "", False),
        (" at noon", "", True),
        (" at noon", "\ntomorrow", True),
    ],
)
def test_a_draft_joins_the_rest_of_the_line(draft, suffix, fits):
    assert joins(draft, Gap("See you", suffix)) == fits


@pytest.mark.parametrize(
    ("suffix", "has_text"),
    [("", False), ("\n", False), ("\r\nmore", False), (' ");\n', False), (" more\n", True), (".", True)],
)
def test_closers_are_no_text_after_the_cursor(suffix, has_text):
    assert has_text_after(Gap("x", suffix)) == has_text


def work(prefix, draft, suffix):
    gap = Gap(prefix, suffix)
    cut_for_gap(draft, gap)  # compiles its patterns
    return num_calls(lambda: cut_for_gap(draft, gap))


@pytest.mark.parametrize(
    ("open_", "draft", "close"), [("(", "x)" * 10, ")"), ("", " " * 600, " )"), ("", "a" * 600, "a")]
)
def test_longer_lines_around_a_draft_are_no_more_work(open_, draft, close):
    assert work(open_ * 10_000, draft, close * 10_000) == work(open_ * 30_000, draft, close * 500_000)


@pytest.mark.parametrize(
    ("piece", "suffix"), [("a", "a" * 5000), ("ab", "ab"), ("ab", "ab" * 5000), (" ", " )" * 5000)]
)
def test_a_monotonous_draft_of_twice_the_length_is_twice_the_work(piece, suffix):
    assert work("", piece * 600, suffix) < 2.1 * work("", piece * 300, suffix)


def test_a_draft_that_is_the_text_after_it_over_and_over_is_not_shown():
    assert cut_for_gap("ab" * 100, Gap("x = ", "ab")) == ""
    assert cut_for_gap("y + " + "ab" * 3, Gap("x = ", "ab")) == "y + "
