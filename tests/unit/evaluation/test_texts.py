import html
import json
import math
import re
from collections import Counter

import pytest
from markdown_it import MarkdownIt

from superdraft.evaluation.decoders.decoders import Contender, Decoded, DecodedDraft
from superdraft.evaluation.decoders.peers import Peer, parse_peer
from superdraft.evaluation.runs.texts import (
    EVERYDAY,
    SHOWN_CHARACTERS,
    Column,
    EverydayText,
    code,
    drafts_cell,
    end_of,
    percent,
    read_texts,
    scores_are_probabilities,
    tables_of,
    visible,
)
from superdraft.server.errors import CommandError

LN_HALF = math.log(0.5)
PLACES = {"word end", "trailing space", "inside a word", "after punctuation", "line break or indent"}


def decoded(*texts, score=LN_HALF):
    return Decoded(tuple(DecodedDraft(text, score) for text in texts), 1, 0.1)


def rendered(markdown):
    """The cells of all rows as a reader sees them, line breaks inside of cells as such."""
    page = MarkdownIt("commonmark").enable("table").render(markdown)
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"</?code>", "", cell).replace("<br>", "\n")) for cell in row] for row in cells]


def test_the_shipped_texts_are_varied():
    texts = read_texts(EVERYDAY)
    assert Counter(one.kind for one in texts) == dict.fromkeys(("mail", "chat", "document", "code"), 25)
    assert len({one.text for one in texts}) == 100
    places = Counter(one.place for one in texts)
    assert set(places) == PLACES
    assert min(places.values()) >= 15
    assert all(one.is_short == (len(one.text.split()) <= 5) for one in texts)
    assert sum(one.is_short for one in texts) >= 20


def test_the_places_are_what_they_are_called():
    for one in read_texts(EVERYDAY):
        match one.place:
            case "trailing space":
                assert re.search(r"\S $", one.text)
            case "word end" | "inside a word":
                assert one.text[-1].isalnum()
            case "after punctuation":
                assert not re.search(r"[\w\s]$", one.text)
            case _:
                assert re.search(r"\n[^\n]{0,8}$", one.text)


def test_a_file_of_other_texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"kind": "poem", "place": "end", "text": "O"}))
    assert read_texts(path) == [EverydayText("poem", "end", "O")]
    for content in ('{"kind": "poem", "text": "O"}', '{"kind": "poem", "place": "end", "text": ""}', ""):
        path.write_text(content)
        with pytest.raises(CommandError, match=re.escape(str(path))):
            read_texts(path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("So far", "So far"),
        (" so far ", "␣so far␣"),
        ("if x:\n    y", "if x:⏎␣␣␣␣y"),
        ("a  b", "a␣␣b"),
        ("a \nb", "a␣⏎b"),
        ("\ta\r\n", "⇥a␍⏎"),
        ('say "\\n"', 'say "\\n"'),
        (" ", "␣"),
    ],
)
def test_what_nobody_would_see_is_shown(text, shown):
    assert visible(text) == shown


def test_long_texts_are_shown_from_behind():
    assert end_of("x" * SHOWN_CHARACTERS) == "x" * SHOWN_CHARACTERS
    shown = end_of("x" * SHOWN_CHARACTERS + "y")
    assert shown == "…" + "x" * (SHOWN_CHARACTERS - 2) + "y"


@pytest.mark.parametrize(
    "text", ["a|b", "`", "``x`` `y`", "`a|b`", "<b>&amp;|*x*_y_|\\|", "<br>", "\\", "a\\|b`", "[x](y)|", "é|—"]
)
def test_no_text_breaks_a_table(text):
    one = EverydayText("code", "end", text)
    (header, row) = rendered("\n".join(tables_of([one], [Column("now", (decoded(text, text),), False)])))
    assert header == ["", "text", "now"]
    assert row == ["1", text, f"{text}\n{text}"]


def test_plain_texts_stay_readable():
    assert code("a *b*") == "`a *b*`"
    assert code("a `b`") == "`` a `b` ``"


def test_drafts_of_a_text():
    assert drafts_cell(decoded(" one", "two"), True) == "`␣one` 50 %<br>`two`"
    assert drafts_cell(decoded(" one", score=-2), False) == "`␣one`"
    assert drafts_cell(decoded(""), True) == "empty 50 %"
    assert drafts_cell(decoded(), True) == "no draft"
    assert [percent(value) for value in (1, 0.0996, 0.0994, 0.004)] == ["100 %", "10 %", "9.9 %", "0.4 %"]


def test_a_table_for_each_kind():
    texts = [EverydayText(kind, "end", text) for kind, text in (("mail", "a"), ("chat", "b"), ("mail", "c"))]
    columns = [Column(name, tuple(decoded(f"{name}{i}") for i in range(3)), False) for name in ("x", "y|z")]
    lines = tables_of(texts, columns)
    assert [line for line in lines if line.startswith("#")] == ["## Mail", "## Chat"]
    head, *mail = rendered("\n".join(lines[: lines.index("## Chat")]))
    assert head == ["", "text", "x", "y|z"]
    assert mail == [["1", "a", "x0", "y|z0"], ["3", "c", "x2", "y|z2"]]
    assert rendered("\n".join(lines[lines.index("## Chat") :]))[1] == ["2", "b", "x1", "y|z1"]


def test_which_scores_are_probabilities():
    def contender(**params):
        return Contender("", None, {"params": params}, 15)

    assert scores_are_probabilities(contender(strategy="superposed", selection="distinct"))
    assert not scores_are_probabilities(contender(strategy="superposed", selection="paper"))
    assert not scores_are_probabilities(contender(strategy="greedy", selection="paper"))
    assert scores_are_probabilities(Contender("", None, {"peer": "superdraft"}, 15))


def test_a_server_is_a_kind_and_a_url():
    peer = parse_peer("superdraft=http://127.0.0.1:8101/", ("superdraft",))
    assert (peer, peer.name) == (Peer("superdraft", "http://127.0.0.1:8101"), "superdraft at http://127.0.0.1:8101")
    for text in ("http://127.0.0.1:8101", "=http://x", "superdraft=x", "before=http://x"):
        with pytest.raises(CommandError, match="--peer must be KIND=URL with KIND one of superdraft"):
            parse_peer(text, ("superdraft",))
