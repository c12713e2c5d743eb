"""Playground tests: typing and accepting drafts of a fake engine, " red0 red1 ...", " green0 ..." and so on."""

import re
import threading
import time
from datetime import datetime

import pytest
from playwright.sync_api import expect
from support.playground import button, drafts, expect_ghost, expect_text, text_area, write
from support.serving import eventually, serving

from superdraft.server.app import create_app
from superdraft.server.settings import Settings

RED = "".join(f" red{i}" for i in range(12))
GREEN = RED.replace("red", "green")
BLUE = RED.replace("red", "blue")


def requests_of(page):
    """Collect the bodies of the draft requests that the page sends from now on."""
    bodies = []

    def note(request):
        if request.url.endswith("/v1/drafts"):
            bodies.append(request.post_data_json)

    page.on("request", note)
    return bodies


def test_drafts_appear_while_typing(page, engine, keep):
    bodies = requests_of(page)
    expect(page.get_by_text("tiny", exact=True)).to_be_visible()
    write(page, "Hello")
    expect_ghost(page, RED)
    expect_text(page, "Hello")  # the draft is not part of the text yet
    expect(drafts(page)).to_have_count(3)
    scores = [re.search(r"\d\.\d\d$", text).group() for text in drafts(page).all_inner_texts()]
    assert scores == ["0.50", "1.50", "2.50"]  # each is preceded by a minus sign
    expect(page.locator("#latency")).to_have_text(re.compile(r"^[\d.]+ ms$"))
    expect(page.locator("#rows")).to_have_text("12 for 3 drafts")
    assert bodies[-1]["prompt"] == "Hello"
    assert len({body["session_id"] for body in bodies}) == 1
    keep(page, "typing")


def test_keys_cycle_through_the_drafts(page):
    write(page, "Hello")
    expect_ghost(page, RED)
    for key, ghost in (("]", GREEN), ("]", BLUE), ("]", RED), ("[", BLUE)):
        page.keyboard.press(f"Alt+{key}")
        expect_ghost(page, ghost)
    expect(drafts(page).nth(2).get_by_role("button")).to_have_attribute("aria-current", "true")
    expect(page.get_by_role("status").filter(has_text="Draft 3 of 3:")).to_have_count(1)
    expect_text(page, "Hello")


def test_tab_accepts_and_the_browser_can_undo_it(page, engine):
    write(page, "Hello")
    expect_ghost(page, RED)
    page.keyboard.press("Alt+]")
    page.keyboard.press("Tab")
    expect_text(page, "Hello" + GREEN)
    expect_ghost(page, RED)  # the next drafts, requested at once
    assert engine.seen[-1].token_ids == tuple(map(ord, "Hello" + GREEN))
    page.keyboard.press("Control+z")
    expect_text(page, "Hello")


def test_a_word_can_be_accepted_and_the_rest_stays(page, engine):
    write(page, "Hello")
    expect_ghost(page, RED)
    engine.gate = threading.Event()  # the following steps need no response
    page.keyboard.press("Control+ArrowRight")
    expect_text(page, "Hello red0")
    expect_ghost(page, RED.removeprefix(" red0"))
    button(page, "Accept word").click()
    expect_text(page, "Hello red0 red1")
    expect_ghost(page, RED.removeprefix(" red0 red1"))
    engine.gate.set()


def test_typing_along_a_draft_keeps_it_and_drops_the_others(page, engine):
    write(page, "Hello")
    expect_ghost(page, RED)
    engine.gate = threading.Event()
    page.keyboard.type(" gre")
    expect_ghost(page, GREEN.removeprefix(" gre"))
    expect(drafts(page)).to_have_count(1)
    page.keyboard.type("y")
    expect_ghost(page, "")
    expect(drafts(page)).to_have_count(0)
    engine.gate.set()
    expect_ghost(page, RED)


def test_escape_dismisses_then_tab_leaves_the_text(page):
    write(page, "Hello")
    expect_ghost(page, RED)
    page.keyboard.press("Escape")
    expect_ghost(page, "")
    page.keyboard.press("Tab")
    expect(text_area(page)).not_to_be_focused()
    expect_text(page, "Hello")
    text_area(page).focus()
    page.keyboard.press("Alt+]")  # brings the drafts back
    expect_ghost(page, RED)
    page.keyboard.press("Shift+Tab")  # leaves the text field even if drafts are shown
    expect(text_area(page)).not_to_be_focused()


def test_a_draft_of_the_list_is_accepted_with_the_mouse(page):
    write(page, "Hello")
    expect_ghost(page, RED)
    drafts(page).nth(1).get_by_role("button").click()
    expect_text(page, "Hello" + GREEN)
    expect(text_area(page)).to_be_focused()
    page.keyboard.type("!")
    expect_text(page, f"Hello{GREEN}!")


def test_drafts_appear_at_the_caret_but_not_inside_a_word(page, engine):
    write(page, "One two.")
    expect_ghost(page, RED)
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    expect_ghost(page, "")
    num_seen = len(engine.seen)
    page.keyboard.press("ArrowRight")  # after "two", before the full stop
    expect_ghost(page, RED)
    assert len(engine.seen) == num_seen + 1
    assert engine.seen[-1].token_ids == tuple(map(ord, "One two"))
    expect(page.locator("#mirror")).to_contain_text(f"One two{RED}.")
    page.keyboard.press("Tab")
    expect_text(page, f"One two{RED}.")


def test_a_newer_key_press_silently_cancels_the_older_request(page, engine):
    engine.on_step = lambda: time.sleep(0.05)
    write(page, "a")
    assert eventually(lambda: len(engine.seen) == 1)
    with page.expect_response(lambda response: response.status == 499):
        page.keyboard.type("b")
    expect_ghost(page, RED)
    expect_text(page, "ab")
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize(("typed", "ghost"), [(" re", RED.removeprefix(" re")), ("b", "")], ids=["along", "else"])
def test_an_answer_to_the_text_before_the_last_keys_is_shown_only_as_far_as_it_fits(page, typed, ghost):
    held = []
    page.route("**/v1/drafts", lambda route: held.append(route))
    page.clock.install(time=datetime(2030, 1, 1))
    page.clock.pause_at(datetime(2030, 1, 2))
    write(page, "a")
    page.clock.run_for(100)
    page.wait_for_timeout(100)
    (route,) = held
    page.keyboard.type(typed)  # the clock is paused, so no request is sent for this
    with page.expect_response("**/v1/drafts"):
        route.continue_()
    expect(page.locator("#rows")).to_have_text("12 for 3 drafts")
    expect_ghost(page, ghost)
    expect_text(page, "a" + typed)


def test_settings_reach_the_server_within_its_limits(page, engine):
    bodies = requests_of(page)
    write(page, "Hello")
    expect_ghost(page, RED)
    field = page.get_by_label("Drafts (k)")
    assert field.get_attribute("max") == str(engine.config.max_num_drafts)
    for asked, sent in (("5", 5), ("1000", engine.config.max_num_drafts), ("", 3)):
        field.fill(asked)
        field.press("Tab")
        expect(field).to_have_value(str(sent))
        expect(drafts(page)).to_have_count(min(sent, engine.max_distinct_drafts))
        assert bodies[-1]["num_drafts"] == sent
    assert "ngram_model" not in bodies[-1]
    page.get_by_label("N-gram model").select_option("none")
    assert eventually(lambda: "ngram_model" in bodies[-1] or page.wait_for_timeout(10))
    assert bodies[-1]["ngram_model"] is None
    assert (bodies[-1]["trim"], bodies[-1]["single_line"], bodies[-1]["token_healing"]) == ("word", True, True)


def test_a_text_that_is_too_long_is_cut_at_its_beginning(open_page, engine):
    engine.max_model_len = 64
    with serving(create_app(Settings(), engine, model_name="tiny")) as url:
        page = open_page(url)
        text_area(page).fill("long " * 40)
        expect_ghost(page, RED)
        sent = "".join(map(chr, engine.seen[-1].token_ids))
        assert ("long " * 40).endswith(sent)
        assert sent


def test_a_request_that_the_server_refuses_as_overloaded_is_reported_and_retried(page):
    error = {"message": "The server is busy.", "type": "rate_limit_error", "param": None, "code": "overloaded"}

    def refuse(route):
        route.fulfill(status=429, json={"error": error}, headers={"retry-after-ms": "700"})

    page.route("**/v1/drafts", refuse, times=1)
    write(page, "a")
    expect(page.locator("#problem")).to_have_text(error["message"])
    expect_ghost(page, "")
    expect_ghost(page, RED)
    expect(page.locator("#problem")).to_be_hidden()


def test_model_output_is_shown_as_text_and_never_as_html(page, engine, monkeypatch):
    evil = "<img src=x onerror=alert(1)>"
    monkeypatch.setattr("support.engine.WORDS", (evil, "b", "c"))
    write(page, "<b>Hello</b>")
    expect(page.locator(".ghost")).to_contain_text(evil)
    assert page.locator("main img, main b").count() == 0


def test_the_page_works_with_the_keyboard_alone(page):
    """Tab order follows the reading order: text, its buttons, drafts, settings, comparison."""
    write(page, "Hello")
    expect_ghost(page, RED)
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+]")
    expect_ghost(page, RED)
    button(page, "Accept").focus()
    names = []
    for _ in range(14):
        names.append(page.evaluate("document.activeElement.id || document.activeElement.parentElement.tagName"))
        page.keyboard.press("Tab")
    wanted = ["accept", "accept-word", "previous", "next", "dismiss", "LI", "LI", "LI", "num-drafts", "max-tokens"]
    assert names == [*wanted, "ngram-model", "trim", "token-healing", "single-line"]
    expect(button(page, "Compare")).to_be_focused()
