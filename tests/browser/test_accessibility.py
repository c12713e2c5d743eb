"""Accessibility tests of the playground: axe-core in light and dark, on desktop and phone, and layout on a phone."""

import pytest
from playwright.sync_api import expect
from support.engine import FakeEngine
from support.playground import button, check_accessibility, drafts, expect_ghost, text_area, unfold, write
from support.serving import serving

from superdraft.server.app import create_app
from superdraft.server.settings import Settings

RED = "".join(f" red{i}" for i in range(12))
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
_TOUCHED = "button:visible, select:visible, input:visible"
_SMALLEST_TARGET = 24  # CSS pixels, WCAG 2.2's 2.5.8


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["desk", "phone"])
def test_axe_finds_nothing(open_page, url, keep, device, scheme):
    page = open_page(url, color_scheme=scheme, **(PHONE if device == "phone" else {}))
    expect(page.get_by_text("tiny", exact=True)).to_be_visible()
    check_accessibility(page)
    write(page, "Hello")
    expect_ghost(page, RED)
    unfold(page, "Figures")
    button(page, "Compare").click()
    expect(page.get_by_role("article")).to_have_count(2)
    check_accessibility(page)
    keep(page, f"{device}-{scheme}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_when_a_key_is_required_or_the_server_is_down(open_page, scheme):
    settings = Settings(api_keys="ann=0123456789-0123456789")
    with serving(create_app(settings, FakeEngine(), model_name="tiny")) as url:
        page = open_page(url, color_scheme=scheme)
        expect(page.get_by_label("API key", exact=True)).to_be_visible()
        check_accessibility(page)
    expect(page.get_by_role("alert")).to_contain_text("The server is not responding.")
    check_accessibility(page)


def test_the_theme_can_be_chosen_and_is_remembered(page):
    background = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(background)
    page.get_by_label("Theme").select_option("dark")
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    expect(page.get_by_label("Theme")).to_have_value("dark")
    assert page.evaluate(background) == dark


def test_a_phone_shows_everything_without_scrolling_sideways(open_page, url):
    page = open_page(url, **PHONE)
    text_area(page).tap()
    page.keyboard.type("Hello, " + "Donaudampfschifffahrtsgesellschaft" * 3)
    expect_ghost(page, RED)
    unfold(page, "Figures")
    button(page, "Compare").tap()
    expect(page.get_by_role("article")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = [
        target.bounding_box() for target in page.locator(_TOUCHED).all() if target.get_attribute("type") != "checkbox"
    ]
    assert len(boxes) > 10
    assert all(min(box["width"], box["height"]) >= _SMALLEST_TARGET for box in boxes)
    button(page, "Next").tap()
    button(page, "Accept").tap()  # a phone's keyboard has no Tab
    expect(text_area(page)).to_have_value(
        "Hello, " + "Donaudampfschifffahrtsgesellschaft" * 3 + RED.replace("red", "green")
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_screen_readers_hear_of_drafts_when_typing_pauses(page):
    write(page, "Hello")
    expect(page.locator("#announcement")).to_have_text(f"3 drafts. {RED}")
    assert page.locator("#announcement").get_attribute("role") == "status"
    expect(page.locator("#mirror")).to_have_attribute("aria-hidden", "true")
    described = text_area(page).get_attribute("aria-describedby")
    expect(page.locator(f"#{described}")).to_contain_text("Tab accepts the draft")


def test_the_draft_is_drawn_at_the_caret(page):
    """Mirror and text area have the same line breaks: the draft begins where the next typed letter would appear."""
    write(page, "word " * 60 + "wo")
    expect_ghost(page, RED)
    ghost, area = page.locator(".ghost"), text_area(page)
    before = page.evaluate(
        """() => {
            const range = document.createRange();
            const text = document.getElementById("mirror").firstChild;
            range.setStart(text, text.length - 1);
            range.setEnd(text, text.length);
            const box = range.getBoundingClientRect();
            return {x: box.right, y: box.top};
        }"""
    )
    first = ghost.evaluate(
        "(element) => { const box = element.getClientRects()[0]; return {x: box.left, y: box.top}; }"
    )
    assert first == pytest.approx(before, abs=1)
    sizes = "(element) => [element.clientWidth, element.scrollHeight]"
    page.keyboard.press("Escape")
    assert area.evaluate(sizes) == page.locator("#mirror").evaluate(sizes)
    expect(drafts(page)).to_have_count(0)


def test_a_long_text_scrolls_with_the_caret(page):
    text_area(page).fill("A line.\n" * 60)
    text_area(page).press("Control+End")
    page.keyboard.type("Hello")
    expect_ghost(page, RED)
    expect(page.locator(".ghost")).to_be_in_viewport()
    editor = page.locator(".editor")
    assert editor.evaluate("(element) => element.scrollTop > 0")
    text_area(page).press("Control+Home")
    page.keyboard.press("ArrowDown")
    assert editor.evaluate("(element) => element.scrollTop < element.clientHeight")
