"""The view "How it works": the tree of drafts, drawn from a stream's snapshots."""

import json
import re

import pytest
from playwright.sync_api import expect
from support.playground import drafts, text_area, unfold

STREAM = [
    (["al", "il"], [-0.2, -2.0]),
    (["al red", "il"], [-0.3, -2.0]),
    (["al red x", "al blue", "il"], [-0.4, -1.5, -2.0]),
]
ANSWER = {
    "object": "drafts",
    "id": "drafts-1",
    "model": "tiny",
    "drafts": [
        {
            "index": index,
            "text": text,
            "score": score,
            "tokens": [],
            "token_ids": [],
            "token_logprobs": [],
            "finish_reason": "length",
        }
        for index, (text, score) in enumerate([("al red", -0.5), ("al blue", -1.5)])
    ],
    "usage": {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
        "cached_tokens": 0,
        "forward_rows": 4,
        "rows_by_depth": [2, 2],
    },
    "timings": {"queue_ms": 0, "prefill_ms": 1, "decode_ms": 1, "ngram_ms": 0, "total_ms": 2},
    "warnings": [],
}


@pytest.fixture
def tree(page):
    """The page after the stream above, typed for "You're re"."""
    page.route("**/v1/drafts", lambda route: route.fulfill(content_type="text/event-stream", body=stream()))
    text_area(page).fill("You're re")
    expect(drafts(page)).to_have_count(2)
    return page


def stream():
    events = [
        {
            "object": "drafts.snapshot",
            "id": "drafts-1",
            "step": number,
            "stable_text": "",
            "rows_by_depth": [2] * (number - 1),
            "drafts": [
                {"index": i, "text": text, "score": score} for i, (text, score) in enumerate(zip(*step, strict=True))
            ],
        }
        for number, step in enumerate(STREAM, 1)
    ]
    return "".join(f"data: {json.dumps(event)}\n\n" for event in [*events, ANSWER]) + "data: [DONE]\n\n"


def test_the_tree_shows_what_drafts_share_how_probable_they_are_and_what_was_dropped(tree, keep):
    kept = [text.text_content() for text in tree.locator("#tree .node:not(.dropped)").all()]
    dropped = [text.text_content() for text in tree.locator("#tree .node.dropped").all()]
    assert sorted(kept) == sorted(["You're re", "al", "red", "blue"])
    assert sorted(dropped) == sorted(["il", "x"])
    assert [re.sub(r"\s", " ", text.text_content()) for text in tree.locator("#tree .leaf").all()] == ["61 %", "22 %"]
    assert tree.locator("#tree .link").count() == 5
    widths = {link.get_attribute("stroke-width") for link in tree.locator("#tree .link:not(.dropped)").all()}
    assert len(widths) == 2  # as probable as the best draft through them
    assert [text.text_content() for text in tree.locator("#tree .head").all()] == ["2 rows", "2 rows"]
    expect(tree.locator("#tree-caption")).to_contain_text("The model ran 4 rows; all its drafts have 5 tokens.")
    keep(tree, "tree-of-a-fake")


def test_its_steps_can_be_gone_through_again(tree):
    slider = tree.get_by_label("Step")
    expect(slider).to_have_attribute("max", "4")
    slider.fill("1")
    assert sorted(text.text_content() for text in tree.locator("#tree .node").all()) == ["You're re", "al", "il"]
    expect(tree.locator("#tree-caption")).not_to_contain_text("rows")
    assert tree.locator("#tree .head").count() == 0  # the first tokens come with the prompt
    slider.fill("2")
    assert tree.locator("#tree .node.dropped").count() == 0
    assert tree.locator("#tree .head").all_text_contents() == ["2 rows"]
    slider.fill("4")
    assert tree.locator("#tree .node.dropped").count() == 2


def test_the_fold_closes_it(tree):
    expect(tree.locator("#tree")).to_be_visible()
    tree.get_by_role("heading", name="How it works").click()
    expect(tree.locator("#tree")).to_be_hidden()
    unfold(tree, "How it works")
    expect(tree.locator("#tree")).to_be_visible()
