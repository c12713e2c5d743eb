"""The typing session under a manual clock."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.typist import Bench, answer, started

from superdraft.client import Cancel, Report, Send, SessionOptions
from superdraft.client.errors import BadRequestError, ConnectionFailedError, OverloadedError
from superdraft.client.pace import Pace
from superdraft.client.suggestions import AnswerCache

DRAFTS = (" for your email", " for coming", " very much")


# What is shown


def test_typing_along_a_draft_asks_nobody():
    bench = started("Thank you", *DRAFTS)
    assert bench.texts == list(DRAFTS)
    bench.type(" for ")
    assert bench.texts == ["your email", "coming"]
    bench.type("c")
    assert bench.texts == ["oming"]
    assert bench.session.display.ghost.rank == 1
    assert bench.session.display.ghost.num_typed == 6
    bench.wait(5)
    assert len(bench.sent) == 1


def test_draft_that_is_typed_to_its_end_is_gone():
    bench = started("a", "b")
    bench.type("b")
    assert bench.ghost is None
    bench.wait(1)
    assert [send.prompt for send in bench.sent] == ["a", "ab"]


def test_what_agrees_no_more_is_not_shown():
    bench = started("Thank you", *DRAFTS)
    bench.type("x")
    assert bench.ghost is None
    bench.wait(1)
    assert bench.sent[-1].prompt == "Thank youx"


def test_deleting_brings_the_old_answer_back_without_a_request():
    bench = started("Thank you", *DRAFTS)
    bench.type("x")
    bench.do("edit", "Thank you")
    assert bench.texts == list(DRAFTS)
    bench.wait(5)
    assert len(bench.sent) == 1


def test_no_drafts_is_an_answer():
    bench = started("Thank you")
    bench.wait(60)
    assert len(bench.sent) == 1
    bench.type("r")
    bench.wait(1)
    assert len(bench.sent) == 2


def test_empty_text_is_not_sent():
    bench = Bench()
    bench.do("edit", "a")
    bench.do("edit", "")
    bench.wait(5)
    assert bench.sent == []


def test_cycling_keeps_to_its_draft_while_that_agrees():
    bench = started("Thank you", *DRAFTS)
    bench.do("select_next")
    assert bench.ghost == " for coming"
    bench.type(" for")
    assert (bench.ghost, bench.texts) == (" coming", [" your email", " coming"])
    bench.do("select_next")
    assert bench.ghost == " your email"
    bench.do("select_previous")
    assert bench.ghost == " coming"
    bench.type(" y")
    assert bench.ghost == "our email"


def test_dismissed_until_the_text_changes():
    bench = started("Thank you", *DRAFTS)
    bench.do("dismiss")
    assert bench.ghost is None
    bench.wait(5)
    assert len(bench.sent) == 1
    bench.type(" ")
    assert bench.ghost == "for your email"


def test_methods_without_ghost_text_do_nothing():
    bench = Bench()
    for method in ("accept", "accept_word", "select_next", "select_previous", "dismiss", "advance"):
        assert bench.do(method) == []
    assert bench.session.text == ""


# Accepting


def test_accept_takes_the_ghost_text_and_fetches_what_comes_next():
    bench = started("Thank you", *DRAFTS)
    bench.do("select_next")
    bench.do("accept")
    assert bench.session.text == "Thank you for coming"
    assert bench.sent[-1].prompt == "Thank you for coming"  # at once
    bench.reply(" to", ".")
    assert bench.ghost == " to"


def test_prefetching_can_be_left_out():
    bench = started("Thank you", *DRAFTS, options=SessionOptions(prefetch=False))
    bench.do("accept")
    assert len(bench.sent) == 1
    bench.wait(1)
    assert len(bench.sent) == 2


def test_accepting_words():
    bench = started("Thank you", " for\n  your email", " very much")
    bench.do("accept_word")
    assert (bench.session.text, bench.texts) == ("Thank you for", ["\n  your email"])
    bench.do("accept_word")
    assert (bench.session.text, bench.texts) == ("Thank you for\n  your", [" email"])
    assert len(bench.sent) == 1
    bench.do("accept_word")
    assert bench.session.text == "Thank you for\n  your email"
    assert len(bench.sent) == 2
    assert [report.event for report in bench.reports] == ["shown", "accepted"]


def test_white_space_alone_is_a_word():
    bench = started("a", "\n")
    bench.do("accept_word")
    assert bench.session.text == "a\n"


# When requests go out


def test_keys_in_a_hurry_cost_one_request():
    bench = Bench()
    bench.type("Thank you", pause_s=0.05)
    assert bench.sent == []
    bench.wait(1)
    assert [send.prompt for send in bench.sent] == ["Thank you"]


def test_slow_typist_waits_less_than_the_limit():
    bench = Bench(SessionOptions(max_delay_s=0.3))
    bench.type("Thank", pause_s=1.5)
    sent = len(bench.sent)
    bench.do("edit", "Thank ")
    bench.wait(0.3)
    assert len(bench.sent) == sent + 1


def test_request_on_its_way_serves_what_was_typed_meanwhile():
    bench = Bench()
    bench.do("edit", "Thank")
    bench.wait(1)
    bench.do("edit", "Thank ")
    bench.reply(" you", "fully")
    assert bench.texts == ["you"]
    bench.wait(5)
    assert (len(bench.sent), bench.cancelled) == (1, [])


def test_answer_that_agrees_no_more_is_followed_by_a_request():
    bench = Bench()
    bench.do("edit", "Thank")
    bench.wait(1)
    bench.do("edit", "Thankx")
    bench.reply(" you")
    assert bench.ghost is None
    bench.wait(1)
    assert [send.prompt for send in bench.sent] == ["Thank", "Thankx"]


def test_newer_request_takes_the_place_of_a_late_one():
    bench = Bench()
    bench.do("edit", "a")
    bench.wait(1)  # much longer than answers take
    bench.do("edit", "ab")
    bench.wait(1)
    assert [send.prompt for send in bench.sent] == ["a", "ab"]
    assert [cancel.request_id for cancel in bench.cancelled] == [1]
    assert bench.do("answered", 1, answer("late", "b c")) == []
    assert bench.ghost is None


def test_request_that_cannot_agree_any_more_is_cancelled_at_once():
    bench = Bench()
    bench.do("edit", "abc")
    bench.wait(1)
    assert bench.do("edit", "ab") == [Cancel(1)]


def test_answer_that_is_nearly_there_is_waited_for():
    bench = started("a", "x")  # took no time
    for _ in range(30):  # now the server takes 0.4 s
        bench.do("edit", bench.session.text + "y")
        while not bench.session.is_waiting:
            bench.wait(0.01)
        bench.wait(0.4)
        bench.reply("z")
    latency_s = bench.session.latency_s
    assert latency_s == pytest.approx(0.4, abs=0.01)
    bench.do("edit", bench.session.text + "y")
    while not bench.session.is_waiting:
        bench.wait(0.01)
    count = len(bench.sent)
    bench.wait(latency_s * 0.6)
    bench.do("edit", bench.session.text + "y")
    bench.wait(latency_s * 0.3)
    assert (len(bench.sent), bench.cancelled) == (count, [])


def test_long_texts_are_sent_from_a_beginning_that_seldom_moves():
    bench = Bench(SessionOptions(max_prompt_chars=100))
    text = "".join(chr(0x4E00 + i) for i in range(180))
    bench.do("edit", text)
    prompts = []
    for i in range(60):
        bench.wait(5)
        prompts.append(bench.sent[-1].prompt)
        bench.reply()
        bench.do("edit", bench.session.text + str(i % 10))
    assert all(76 <= len(prompt) <= 100 for prompt in prompts)
    assert len({prompt[0] for prompt in prompts}) <= 4


def test_failures_are_shown_and_tried_again_later_and_later_up_to_five_seconds():
    bench = Bench()
    bench.do("edit", "a")
    pauses = []
    for _ in range(8):
        before_s, count = bench.now_s, len(bench.sent)
        while len(bench.sent) == count:
            bench.wait(0.1)
        pauses.append(bench.now_s - before_s)
        bench.do("failed", bench.sent[-1].request_id, ConnectionFailedError("nobody"))
        assert str(bench.session.error) == "nobody"
    assert pauses[1:] == pytest.approx([0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0], abs=0.11)
    bench.wait(5.1)
    bench.reply("b")
    assert (bench.session.error, bench.ghost) == (None, "b")


@pytest.mark.parametrize(
    "error",
    [OverloadedError("full", status=429, should_retry=False, retry_after_s=0.1), BadRequestError("x", status=400)],
)
def test_refused_text_is_not_sent_again(error):
    bench = Bench()
    bench.do("edit", "a")
    bench.wait(1)
    bench.do("failed", 1, error)
    bench.wait(60)
    assert len(bench.sent) == 1
    bench.type("b")
    bench.wait(1)
    assert len(bench.sent) == 2


def test_text_too_long_for_the_model_is_sent_without_its_beginning():
    bench = Bench(SessionOptions(max_prompt_chars=100))
    bench.do("edit", "ab" * 60)
    bench.wait(1)
    sent = [bench.sent[-1].prompt]
    for _ in range(2):
        bench.do("failed", len(sent), BadRequestError("x", status=400, code="context_length_exceeded"))
        sent.append(bench.sent[-1].prompt)  # at once
    bench.reply("c")
    assert [("ab" * 60).endswith(prompt) for prompt in sent] == [True] * 3
    assert len(sent[0]) > 75
    assert len(sent[1]) <= len(sent[0]) // 2
    assert len(sent[2]) <= len(sent[1]) // 2
    assert (bench.ghost, bench.session.error) == ("c", None)
    bench.do("edit", "cd" * 60)  # the next text is short at once
    bench.wait(5)
    assert len(bench.sent[-1].prompt) <= len(sent[1]) // 2


def test_server_says_when_to_come_back():
    bench = Bench()
    bench.do("edit", "a")
    bench.wait(1)
    bench.do("failed", 1, OverloadedError("full", status=503, retry_after_s=7))
    bench.wait(6.9)
    assert len(bench.sent) == 1
    bench.wait(0.2)
    assert len(bench.sent) == 2


def test_closing_cancels_and_reports():
    bench = started("a", "bc")
    bench.wait(1)
    bench.type("x")
    bench.wait(1)
    assert [type(action) for action in bench.do("close")] == [Cancel, Report]
    assert bench.events == [("shown", "drafts-1", 0), ("dismissed", "drafts-1", 0)]
    assert bench.session.wake_at_s is None


def test_a_closed_session_shows_and_sends_nothing():
    bench = started("a", "bc")
    bench.wait(1)
    bench.do("close")
    for method, *arguments in (["edit", "ab"], ["ask"], ["edit", "zzz"], ["ask"], ["accept"]):
        assert bench.do(method, *arguments) == []
        assert bench.session.display.suggestions == ()
        assert bench.session.wake_at_s is None


# Parts


def test_cache_forgets_what_was_not_used_for_longest():
    cache = AnswerCache(2)
    for text in "ab":
        cache.put(text, answer(text, "x"))
    assert cache.find("a")
    cache.put("c", answer("c", "x"))
    assert len(cache) == 2
    assert cache.find("b") is None
    assert cache.find("a")


def test_cache_prefers_the_answer_that_knew_most():
    cache = AnswerCache(8)
    cache.put("a", answer("old", "bcd", "bce"))
    cache.put("ab", answer("new", "cd"))
    assert [suggestion.completion_id for suggestion in cache.find("ab")] == ["new"]
    assert [suggestion.text for suggestion in cache.find("abce"[:3])] == ["d"]
    assert [suggestion.completion_id for suggestion in cache.find("abce"[:3])] == ["new"]
    cache.put("abc", answer("nothing"))
    assert [suggestion.completion_id for suggestion in cache.find("abc")] == ["new"]


def test_pace_waits_longer_the_more_keys_miss():
    def delay(found, pause_s=0.15, latency_s=0.01):
        pace = Pace(requests_per_key=0.25, max_delay_s=9)
        pauses = [pause_s * (0.5 + i % 10 / 10) for i in range(100)]
        now_s = 0.0
        for i, pause in enumerate(pauses):
            now_s += pause
            pace.key(now_s)
            pace.looked(found=i % 10 < found)
            pace.answered(latency_s)
        return pace.delay_s

    assert delay(found=10) == 0  # a budget of requests that nobody needs
    assert 0.075 <= delay(found=5) < delay(found=0) < 0.22
    assert delay(found=5) <= delay(found=2) <= delay(found=0)
    assert delay(found=2, pause_s=0.3) == pytest.approx(2 * delay(found=2))
    assert delay(found=10, latency_s=0.3) > 0.15  # no pause so far was long enough for an answer


TEXTS = st.text("ab ", max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_suggestion_goes_on_from_the_text(data):
    """Whatever happens in whatever order: the texts fit, one request at a time, and each story is told once."""
    bench = Bench(SessionOptions(max_answers=3, max_prompt_chars=8))
    asked, known = {}, set()
    steps = ("type", "along", "delete", "jump", "wait", "answer", "answer", "late", "fail", "accept", "accept_word")
    steps += ("select_next", "select_previous", "dismiss", "advance")
    for _ in range(data.draw(st.integers(1, 40))):
        session, step = bench.session, data.draw(st.sampled_from(steps))
        text, ghost = session.text, session.display.ghost
        match step:
            case "type":
                actions = bench.do("edit", text + data.draw(st.sampled_from("ab ")))
            case "along":
                actions = bench.do("edit", text + ("" if ghost is None else ghost.text[0]))
            case "delete":
                actions = bench.do("edit", text[:-1])
            case "jump":
                actions = bench.do("edit", data.draw(TEXTS))
            case "wait":
                bench.now_s += data.draw(st.sampled_from([0.0, 0.01, 0.1, 0.3, 2.0, 11.0]))
                actions = bench.do("advance")
            case "answer" | "fail" if asked:
                request_id, before = asked.popitem()
                if step == "fail":
                    retry_after_s = data.draw(st.sampled_from([None, 0.0, 0.05]))
                    error = OverloadedError("x", status=503, retry_after_s=retry_after_s)
                    actions = bench.do("failed", request_id, error)
                else:
                    drafts = data.draw(st.lists(TEXTS, max_size=3, unique=True))
                    known |= {(f"drafts-{request_id}", i, before + draft) for i, draft in enumerate(drafts)}
                    actions = bench.do("answered", request_id, answer(f"drafts-{request_id}", *drafts))
            case "late":
                actions = bench.do("answered", 0, answer("late", "a"))
            case "answer" | "fail":
                actions = []
            case _:
                actions = bench.do(step)
        for _ in range(3):  # never more than so often without the time going on
            for action in actions:
                if isinstance(action, Send):
                    asked[action.request_id] = session.text
                    assert action.prompt
                    assert session.text.endswith(action.prompt)
                elif isinstance(action, Cancel):
                    del asked[action.request_id]
            if session.wake_at_s is None or session.wake_at_s > bench.now_s:
                break
            actions = bench.do("advance")
        else:
            pytest.fail("The session wants to be woken without end.")
        assert len(asked) <= 1
        assert session.is_waiting == bool(asked)
        assert session.display.text == session.text
        for shown in session.display.suggestions:
            assert shown.text
            assert (shown.completion_id, shown.rank, session.text + shown.text) in known
    bench.do("close")
    assert bench.session.wake_at_s is None
    assert len(bench.events) == len(set(bench.events))
    for event, *draft in bench.events:
        assert event == "shown" or bench.events.index(("shown", *draft)) < bench.events.index((event, *draft))
    assert len({tuple(draft) for event, *draft in bench.events if event != "shown"}) == sum(
        event != "shown" for event, *_ in bench.events
    )


# Text after the cursor


def test_another_text_after_the_cursor_is_another_place():
    bench = Bench()
    bench.do("edit", "Thank you", " today")
    bench.wait(1)
    assert (bench.sent[-1].prompt, bench.sent[-1].suffix) == ("Thank you", " today")
    bench.reply(" for coming")
    assert bench.texts == [" for coming"]
    bench.do("edit", "Thank you", "")
    assert bench.ghost is None
    bench.wait(1)
    assert (bench.sent[-1].prompt, bench.sent[-1].suffix) == ("Thank you", "")
    bench.do("edit", "Thank you", " today")
    assert bench.texts == [" for coming"]
    assert bench.cancelled[-1].request_id == bench.sent[-1].request_id


def test_typing_along_keeps_the_text_after_the_cursor():
    bench = Bench()
    bench.do("edit", "Thank you", " today")
    bench.wait(1)
    bench.reply(" for coming")
    bench.do("edit", "Thank you for", " today")
    assert bench.texts == [" coming"]
    bench.do("accept")
    bench.wait(1)
    assert (bench.sent[-1].prompt, bench.sent[-1].suffix) == ("Thank you for coming", " today")


def test_no_more_of_the_text_after_the_cursor_is_sent_than_the_limit():
    bench = Bench(SessionOptions(max_suffix_chars=3))
    bench.do("edit", "Thank you", "12345")
    bench.wait(1)
    assert bench.sent[-1].suffix == "123"
    bench.do("edit", "Thank you", "12367")
    bench.wait(1)
    assert len(bench.sent) == 1


# Editors that insert drafts themselves


def test_asking_sends_at_once():
    bench = Bench()
    bench.do("edit", "f(")
    assert bench.sent == []
    bench.do("ask")
    bench.do("ask")
    assert [(send.prompt, send.is_invoked) for send in bench.sent] == [("f(", True)]


def test_asking_again_where_nothing_probable_was_found():
    bench = started("f(")
    bench.do("ask")
    assert [send.is_invoked for send in bench.sent] == [False, True]
    bench.reply("a")
    assert bench.ghost == "a"
    bench.do("ask")
    assert len(bench.sent) == 2


def test_asking_takes_the_place_of_a_request_that_nobody_asked_for():
    bench = Bench()
    bench.do("edit", "f(")
    bench.wait(1)
    bench.do("ask")
    assert bench.cancelled == [Cancel(1)]
    assert bench.sent[-1].is_invoked


@pytest.mark.parametrize("comes_after_the_text", [False, True])
def test_draft_that_the_editor_inserted_is_accepted_once_and_continued(comes_after_the_text):
    bench = started("Thank you", *DRAFTS)
    key = bench.session.display.suggestions[1].key
    if comes_after_the_text:
        bench.do("edit", "Thank you for coming")
    bench.do("accepted", key)
    bench.do("edit", "Thank you for coming")
    assert bench.session.text == "Thank you for coming"
    assert bench.sent[-1].prompt == "Thank you for coming"
    bench.do("accepted", key)
    bench.wait(60)
    assert bench.events == [("shown", "drafts-1", 1), ("accepted", "drafts-1", 1)]


def test_draft_is_selected_by_its_key():
    bench = started("Thank you", *DRAFTS)
    bench.do("select", bench.session.display.suggestions[2].key)
    assert bench.ghost == DRAFTS[2]
    bench.do("select", ("drafts-9", 0))
    assert bench.ghost == DRAFTS[2]


# Corrections


CORRECTING = SessionOptions(corrections=True)


def mistyped(bench, *drafts, replaced="tomorow"):
    """Type a text that ends in a typo, and get an answer with drafts that replace it."""
    bench.do("edit", f"See you {replaced}")
    bench.wait(1)
    bench.reply(*drafts, replaced=replaced)
    return bench


def test_a_correction_takes_the_place_of_the_mistyped_word():
    bench = mistyped(Bench(CORRECTING), "tomorrow at noon", "tomorrow evening")
    assert bench.sent[-1].corrects
    assert bench.session.display.ghost.replaces == "tomorow"
    bench.do("accept")
    assert bench.session.text == "See you tomorrow at noon"


def test_after_the_corrected_word_the_rest_of_the_draft_stays():
    bench = mistyped(Bench(CORRECTING), "tomorrow at noon", "tomorrow evening")
    bench.do("accept_word")
    assert bench.session.text == "See you tomorrow"
    assert bench.texts == [" at noon", " evening"]
    assert not bench.session.display.ghost.replaces
    bench.type(" e")
    assert bench.texts == ["vening"]


def test_a_correction_is_gone_with_the_next_key():
    bench = mistyped(Bench(CORRECTING), "tomorrow at noon")
    bench.type(" ")
    assert bench.ghost is None


def test_a_dismissed_correction_keeps_the_word_for_the_rest_of_the_session():
    bench = mistyped(Bench(CORRECTING), "tomorrow at noon")
    bench.do("dismiss")
    assert bench.ghost is None
    bench.type(" ")
    bench.wait(1)
    assert not bench.sent[-1].corrects, "the word before the cursor is kept"
    bench.type("or")
    bench.wait(1)
    assert bench.sent[-1].corrects
    bench.do("edit", "And Tomor")
    bench.wait(1)
    assert not bench.sent[-1].corrects, "it may become the kept word"


def test_who_keeps_a_word_sees_the_drafts_that_follow_it():
    bench = Bench(CORRECTING)
    bench.do("edit", "See you tomorow")
    bench.wait(1)
    bench.reply("tomorrow at noon", replaced="tomorow", others=(" or not",))
    assert bench.texts == ["tomorrow at noon", " or not"]
    bench.do("dismiss")
    assert bench.texts == [" or not"]


def test_accepted_words_are_not_corrected():
    bench = started("Thank you", " for Kowlaski's", options=CORRECTING)
    bench.do("accept")
    bench.type(" and Kowl")
    bench.wait(1)
    assert not bench.sent[-1].corrects


def test_an_editor_that_cannot_replace_asks_for_no_corrections():
    bench = started("See you tomorow", " at")
    assert not bench.sent[-1].corrects
