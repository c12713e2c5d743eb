"""Playground tests with the default model: half-typed words, n-gram models, comparison with sampling."""

import re

import pytest
from playwright.sync_api import expect
from support import sse
from support.playground import button, drafts, expect_text, text_area, unfold
from support.serving import serving

from superdraft.server.serving import load_app
from superdraft.server.settings import Settings

LETTER = "Dear Ann,\n\nThank you for your email. Please let me kn"


@pytest.fixture(scope="module")
def model_url(default_gguf):
    settings = Settings(max_model_len=512, num_threads=1, kv_memory=256 * 1024**2, min_probability_shown=0)
    app = load_app(settings)
    with serving(app) as url:
        yield url


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("letter-light", {"color_scheme": "light"}),
        ("letter-dark", {"color_scheme": "dark"}),
        ("letter-phone", {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}),
    ],
)
def test_a_half_typed_word_is_completed(open_page, model_url, keep, name, options):
    page = open_page(model_url, **options)
    # At once: while somebody types, drafts of an earlier key stay as long as one of them agrees.
    text_area(page).fill(LETTER)
    expect(page.locator(".ghost")).to_have_text(re.compile(r"^ow\b"))
    expect(drafts(page)).to_have_count(3)
    for text in drafts(page).all_inner_texts():
        assert text.startswith("know")
    unfold(page, "Figures")
    button(page, "Compare").click()
    expect(page.get_by_text(re.compile(r"Sampling used \d\.\d times as many model rows"))).to_be_visible()
    keep(page, name)
    text_area(page).press("Control+ArrowRight")
    expect_text(page, LETTER + "ow")


def test_the_ngram_model_can_be_chosen(open_page, model_url):
    page = open_page(model_url)
    picker = page.get_by_label("N-gram model")
    expect(picker.locator("option")).to_have_text(["server default", "smollm2-135m", "none"])
    text_area(page).fill("The weather is nice. The weather")
    expect(drafts(page)).to_have_count(3)
    for choice, sent in (("smollm2-135m", "smollm2-135m"), ("none", None)):
        with page.expect_response("**/v1/drafts") as response:
            picker.select_option(choice)
        assert response.value.ok
        assert response.value.request.post_data_json["ngram_model"] == sent
        assert sse.parsed(response.value.body())[-1]["warnings"] == []
    expect(page.locator("#problem")).to_be_hidden()
