"""Drafts that go on in the next answers of a typing session keep their identity, and their events count once."""

from support.engine import FakeEngine

from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.server import continued_drafts
from superdraft.server.continued_drafts import ContinuedDrafts
from superdraft.server.feedback import Feedback, Outcome
from superdraft.server.observe.metrics import Metrics


def test_a_draft_that_goes_on_where_the_typist_goes_keeps_its_identity():
    answers = ContinuedDrafts()

    def origins(prompt: str, *drafts: str) -> list[tuple[str, int]]:
        number = origins.number = origins.number + 1
        return answers.origins("", "window", prompt, drafts, f"answer {number}")

    origins.number = 0
    assert origins("Thank you", " for your help", " so much") == [("answer 1", 0), ("answer 1", 1)]
    # Typed on as the first draft says; it has grown, and another one is new.
    assert origins("Thank you for", " the fish", " your help with this") == [("answer 2", 0), ("answer 1", 0)]
    # Shorter than before, since the server has much to do.
    assert origins("Thank you for y", "our") == [("answer 1", 0)]
    assert origins("Thank you for you", "r time", "r help") == [("answer 1", 0), ("answer 4", 1)]
    # What follows a whole draft is another one, even if it repeats it.
    assert origins("Thank you for your time", "r time") == [("answer 5", 0)]
    # Another text, and the same text elsewhere.
    assert origins("Thank yo", "u for your time") == [("answer 6", 0)]
    assert answers.origins("", "another", "Thank yo", ["u for your time"], "x") == [("x", 0)]
    assert answers.origins("key", "window", "Thank yo", ["u for your time"], "y") == [("y", 0)]


def test_sessions_of_which_nothing_was_heard_longest_are_forgotten(monkeypatch):
    monkeypatch.setattr(continued_drafts, "MAX_SESSIONS", 2)
    answers = ContinuedDrafts()
    for session in "abc":
        answers.origins("", session, "x", ["yz"], session)
    assert answers.origins("", "a", "xy", ["z"], "new") == [("new", 0)]
    assert answers.origins("", "c", "xy", ["z"], "new") == [("c", 0)]


def test_events_of_a_draft_count_once_however_many_answers_it_is_in():
    feedback = Feedback(Metrics())
    engine = FakeEngine()
    engine.add_request(EngineRequest("r", "hi", GenerationParams(max_tokens=1)))
    (step,) = engine.step()
    feedback.remember("", "first", step.output.drafts)
    feedback.remember("", "second", step.output.drafts, origins=[("second", 0), ("first", 0), ("gone", 1)])
    assert feedback.take("first", "shown", 0) == Outcome(0, is_new=True)
    assert feedback.take("second", "shown", 1) == Outcome(1, is_new=False)
    assert feedback.take("second", "accepted", 1) == Outcome(1, is_new=True)
    assert feedback.take("first", "accepted", 0) == Outcome(0, is_new=False)
    assert feedback.take("second", "shown", 0) == Outcome(0, is_new=True)
    assert feedback.take("second", "shown", 2) == Outcome(2, is_new=True)  # its first answer is not remembered
