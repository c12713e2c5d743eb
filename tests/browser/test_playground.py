"""Playground tests: typing and accepting drafts of a fake engine, " red0 red1 ...", " green0 ..." and so on."""

import re
import threading
import time
from dataclasses import replace
from datetime import datetime

import pytest
from playwright.sync_api import expect
from support.engine import FakeEngine
from support.playground import button, drafts, expect_ghost, expect_text, text_area, write
from support.serving import serving
from support.waiting import PATIENCE_S, eventually

from superdraft.server.app import create_app
from superdraft.server.settings import Settings

RED = "".join(f" red{i}" for i in range(12))
GREEN = RED.replace("red", "green")
BLUE = RED.replace("red", "blue")
FIM = {"<|fim_prefix|>": 200, "<|fim_suffix|>": 201, "<|fim_middle|>": 202}


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
    chances = [re.search(r"(\d+)\s%$", text).group(1) for text in drafts(page).all_inner_texts()]
    assert chances == ["61", "22", "8"]  # the scores are -0.5, -1.5 and -2.5
    # All at once: the list is drawn anew when the first draft is reported as shown.
    shares = "bars => bars.map((bar) => bar.firstElementChild.clientWidth / bar.clientWidth)"
    bars = page.locator(".bar").evaluate_all(shares)
    assert bars == pytest.approx([0.61, 0.22, 0.08], abs=0.02)
    expect(page.locator("#latency")).to_have_text(re.compile(r"^[\d.]+ ms$"))
    expect(page.locator("#rows")).to_have_text("12 (3 drafts shown)")
    assert (bodies[-1]["prompt"], bodies[-1]["trigger"]) == ("Hello", "automatic")
    assert not {"suffix", "min_probability_shown"} & bodies[-1].keys()
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
    page.keyboard.press("Control+ArrowRight")
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


def test_a_model_that_does_not_see_the_rest_of_a_line_suggests_nothing_inside_it(page, engine):
    bodies = requests_of(page)
    write(page, "One two.")
    expect_ghost(page, RED)
    num_seen = len(engine.seen)
    for _ in range(2):
        page.keyboard.press("ArrowLeft")  # before the full stop, then inside a word
        expect_ghost(page, "")
    expect(page.get_by_text("This model does not see the text after the cursor")).to_be_visible()
    assert eventually(lambda: bodies[-1]["prompt"] == "One tw" or page.wait_for_timeout(10))
    assert bodies[-1]["suffix"] == "o."
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowUp")
    page.keyboard.type("Zero")  # the line ends here, the text does not
    expect_ghost(page, RED)
    assert engine.seen[-1].token_ids == tuple(map(ord, "Zero"))
    assert len(engine.seen) > num_seen
    expect(page.locator("#mirror")).to_contain_text(f"Zero{RED}\nOne two.")
    page.keyboard.press("Tab")
    expect_text(page, f"Zero{RED}\nOne two.")


def test_a_draft_that_fits_inside_a_line_is_shown_and_accepted_there(open_page, engine, keep, monkeypatch):
    drafted = {"text": "two ", "finish_reason": "stop"}

    def output_of(job):
        output = FakeEngine.output_of(engine, job)
        return replace(output, drafts=(replace(output.drafts[0], **drafted),))

    engine.tokenizer.vocabulary = {**engine.tokenizer.vocabulary, **FIM}
    monkeypatch.setattr(engine, "output_of", output_of, raising=False)
    with serving(create_app(Settings(), engine, model_name="tiny")) as url:
        page = open_page(url)
        bodies = requests_of(page)
        write(page, "three")
        page.keyboard.press("Home")
        page.keyboard.type("one ")
        expect_ghost(page, "two ")
        expect(page.locator("#mirror")).to_have_text("one two three\u200b")
        keep(page, "inside-a-line")
        page.keyboard.press("Tab")
        expect_text(page, "one two three")
        assert [(body["prompt"], body["suffix"]) for body in bodies if body["prompt"] == "one "] == [("one ", "three")]
        drafted |= {"text": "no", "finish_reason": "length"}  # it may go on, so it may not fit
        page.keyboard.press("ArrowLeft")
        expect(page.get_by_text("No draft fits inside this line.")).to_be_visible()
        expect_ghost(page, "")
        assert bodies[-1]["suffix"] == " three"


def test_a_growing_draft_is_shown_and_grows_while_the_user_types_along(page, engine):
    steps = threading.Semaphore(0)
    engine.on_step = lambda: steps.acquire(timeout=PATIENCE_S)
    write(page, "a")
    expect(page.locator("#work")).to_have_class(re.compile("busy"))
    steps.release()
    expect_ghost(page, " red0")
    expect(drafts(page)).to_have_count(3)
    page.keyboard.type(" re")
    expect_ghost(page, "d0")
    expect(drafts(page)).to_have_count(1)
    steps.release(2)
    expect_ghost(page, "d0 red1")  # the last word of a growing draft may be unfinished
    steps.release(20)
    expect_ghost(page, RED.removeprefix(" re"))
    expect(page.locator("#work")).not_to_have_class(re.compile("busy"))
    assert len(engine.seen) == 1
    assert engine.cancelled == []


def test_a_key_that_no_growing_draft_has_replaces_the_request(page, engine):
    steps = threading.Semaphore(0)
    engine.on_step = lambda: steps.acquire(timeout=PATIENCE_S)
    write(page, "a")
    steps.release()
    expect_ghost(page, " red0")
    with page.expect_event("requestfailed"):
        page.keyboard.type("b")
    expect_ghost(page, "")
    steps.release(40)
    expect_ghost(page, RED)
    expect_text(page, "ab")
    assert engine.seen[-1].token_ids == tuple(map(ord, "ab"))
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize(("typed", "ghost"), [(" re", RED.removeprefix(" re")), ("b", "")], ids=["along", "else"])
def test_an_answer_to_the_text_before_the_last_keys_is_shown_only_as_far_as_it_fits(page, typed, ghost):
    held = []
    page.route("**/v1/drafts", lambda route: held.append(route))
    page.clock.install(time=datetime(2030, 1, 1))
    page.clock.pause_at(datetime(2030, 1, 2))
    write(page, "a")
    page.wait_for_timeout(100)
    page.clock.run_for(60)  # its answer is due soon, so no other request is sent for the next keys
    page.keyboard.type(typed)
    (route,) = held
    with page.expect_response("**/v1/drafts"):
        route.continue_()
    expect_ghost(page, ghost)
    expect_text(page, "a" + typed)
    assert eventually(lambda: len(held) == (1 if ghost else 2) or page.wait_for_timeout(10))


def test_the_server_withholds_drafts_below_the_chosen_probability(open_page, engine):
    with serving(create_app(Settings(), engine, model_name="tiny")) as url:
        page = open_page(url)
        bodies = requests_of(page)
        slider, value_shown = page.get_by_label("Hide drafts below"), page.locator("#silence-value")
        expect(slider).to_have_value("20")
        expect(value_shown).to_have_text(re.compile(r"^20\s% \(default\)$"))
        write(page, "Hello")
        expect(drafts(page)).to_have_count(2)
        expect(page.locator("#legend")).to_contain_text(re.compile(r"less probable than 20\s% are hidden"))
        assert "min_probability_shown" not in bodies[-1]
        for value, sent, count in (("5", 0.05, 3), ("50", 0.5, 1), ("0", 0, 3)):
            slider.fill(value)
            expect(drafts(page)).to_have_count(count)
            assert bodies[-1]["min_probability_shown"] == sent
        expect(value_shown).to_have_text("show all")
        expect(page.locator("#legend")).not_to_contain_text("hidden")
        slider.fill("20")
        expect(drafts(page)).to_have_count(2)
        assert "min_probability_shown" not in bodies[-1]
        slider.fill("0")
        page.reload()
        expect(slider).to_have_value("0")
        write(page, "Hello")
        expect(drafts(page)).to_have_count(3)
        assert bodies[-1]["min_probability_shown"] == 0


@pytest.mark.parametrize("with_key", [False, True], ids=["button", "key"])
def test_where_no_draft_is_probable_the_user_may_ask_for_them(open_page, engine, keep, with_key):
    with serving(create_app(Settings(min_probability_shown=0.9), engine, model_name="tiny")) as url:
        page = open_page(url)
        expect(page.get_by_label("Hide drafts below")).to_have_value("90")
        bodies = requests_of(page)
        write(page, "Hello")
        expect(page.get_by_text(re.compile(r"No draft is as probable as 90\s% here\."))).to_be_visible()
        expect_ghost(page, "")
        keep(page, "none-is-probable")
        if with_key:
            page.keyboard.press("Alt+\\")
        else:
            button(page, "Ask for drafts").click()
        expect_ghost(page, RED)
        expect(drafts(page)).to_have_count(3)
        expect(page.locator("#legend")).to_contain_text("You asked for drafts, so none are hidden.")
        assert [body["trigger"] for body in bodies[-2:]] == ["automatic", "invoked"]
        expect(text_area(page)).to_be_focused()
        page.keyboard.type("!")
        expect_ghost(page, "")
        expect(button(page, "Ask for drafts")).to_be_visible()
        assert bodies[-1]["trigger"] == "automatic"


def test_asking_brings_dismissed_drafts_back_without_a_request(page, engine):
    write(page, "Hello")
    expect_ghost(page, RED)
    num_seen = len(engine.seen)
    page.keyboard.press("Escape")
    expect(page.get_by_text("The drafts are dismissed.")).to_be_visible()
    button(page, "Ask for drafts").click()
    expect_ghost(page, RED)
    expect(page.locator("#legend")).not_to_contain_text("You asked")
    assert len(engine.seen) == num_seen


def test_an_example_fills_the_text_and_gets_drafts(page):
    write(page, "Hello")
    button(page, "A fact").click()
    expect_text(page, "The capital of France is")
    expect_ghost(page, RED)
    expect(text_area(page)).to_be_focused()
    page.keyboard.press("Control+z")
    expect_text(page, "Hello")


def test_shown_and_accepted_drafts_are_reported(page):
    events = []
    page.on("request", lambda request: request.url.endswith("/v1/feedback") and events.append(request.post_data_json))
    write(page, "Hello")
    expect_ghost(page, RED)
    page.keyboard.press("Alt+]")
    assert eventually(lambda: len(events) >= 1 or page.wait_for_timeout(20))
    page.keyboard.press("Tab")
    assert eventually(lambda: events[-1]["event"] == "accepted" or page.wait_for_timeout(20))
    assert (events[-1]["index"], events[-1]["elapsed_ms"] > 0) == (1, True)


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
    page.get_by_label("N-gram model").select_option("server default")
    page.get_by_label("Model rows").select_option("one, shared by all drafts")
    assert eventually(lambda: "max_branches" in bodies[-1] or page.wait_for_timeout(10))
    assert "ngram_model" not in bodies[-1]
    assert (bodies[-1]["selection"], bodies[-1]["max_branches"]) == ("distinct", 1)
    assert (bodies[-1]["trim"], bodies[-1]["single_line"], bodies[-1]["token_healing"]) == ("none", True, True)


def test_a_text_that_is_too_long_is_cut_at_its_beginning(open_page, engine):
    engine.max_model_len = 64
    with serving(create_app(Settings(), engine, model_name="tiny")) as url:
        page = open_page(url)
        text_area(page).fill("long " * 40)
        expect_ghost(page, RED)
        sent = "".join(map(chr, engine.seen[-1].token_ids))
        assert ("long " * 40).endswith(sent)
        assert sent


@pytest.mark.parametrize("headers", [{}, {"x-should-retry": "false"}], ids=["plain", "as-the-server-does"])
def test_a_request_that_the_server_refuses_as_overloaded_is_reported_and_retried(page, headers):
    error = {"message": "The server is busy.", "type": "rate_limit_error", "param": None, "code": "overloaded"}

    def refuse(route):
        route.fulfill(status=429, json={"error": error}, headers={"retry-after-ms": "700"} | headers)

    page.route("**/v1/drafts", refuse, times=1)
    bodies = requests_of(page)
    page.clock.install(time=datetime(2030, 1, 1))
    page.clock.pause_at(datetime(2030, 1, 2))
    write(page, "a")
    expect(page.locator("#problem")).to_have_text(error["message"])
    expect_ghost(page, "")
    page.clock.run_for(690)
    assert len(bodies) == 1
    page.clock.run_for(20)
    expect_ghost(page, RED)
    expect(page.locator("#problem")).to_be_hidden()


def test_model_output_is_shown_as_text_and_never_as_html(page, engine, monkeypatch):
    evil = "<img src=x onerror=alert(1)>"
    monkeypatch.setattr("support.engine.WORDS", (evil, "b", "c"))
    write(page, "<b>Hello</b>")
    expect(page.locator(".ghost")).to_contain_text(evil)
    assert page.locator("main img, main b").count() == 0


def test_the_page_works_with_the_keyboard_alone(page, engine):
    """Tab order follows the reading order: text, examples, drafts, their controls, the tree, figures, settings."""
    engine.on_step = lambda: time.sleep(0.02)  # so that the tree has several steps
    write(page, "Hello")
    expect_ghost(page, RED)
    button(page, "A reply").focus()
    focused = "document.activeElement.id || document.activeElement.parentElement.id || document.activeElement.tagName"
    names = []
    while "single-line" not in names and len(names) < 40:
        names.append(page.evaluate(focused))
        page.keyboard.press("Tab")
    drafts_and_controls = ["BUTTON", "BUTTON", "BUTTON", "silence", "copy-curl", "copy-python"]
    choices = ["num-drafts", "max-tokens", "rows-per-request", "ngram-model", "trim", "token-healing", "single-line"]
    tree = ["how", "tree-scroll", "step"]
    assert names == [*["examples"] * 6, *drafts_and_controls, *tree, "lab", *choices]
