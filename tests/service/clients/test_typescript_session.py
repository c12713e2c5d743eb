"""The TypeScript client's typing session makes the same decisions as the Python client's, event by event."""

import json
import random
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from support.typescript import BUILT, NODE, needs_node
from support.waiting import PATIENCE_S

from superdraft.client import Cancel, Report, Send, SessionOptions, TypingSession
from superdraft.client.errors import BadRequestError, ConnectionFailedError
from superdraft.client.models import Draft, DraftsAnswer, Replaces, Timings, Usage

pytestmark = needs_node

SCRIPT = Path(__file__).parents[2] / "node" / "replay_session.mjs"
WORDS = ("the", "then", "there", "other", "on", "one", "once", "a", "and", "any")
AFTER = ("", " other words", "\nThe next line.", "x" * 30)
NUM_EVENTS, NUM_EVENTS_AFTER = 400, 20


def answer_of(request_id: int, prompt: str, chance: random.Random) -> DraftsAnswer:
    """An answer with texts that often agree with what is typed next; some replace the end of the prompt."""
    texts = dict.fromkeys(" ".join(chance.choices(WORDS, k=chance.randint(1, 3))) for _ in range(chance.randint(0, 3)))
    typed = prompt[-chance.randint(1, 4) :] if chance.random() < 0.3 else ""
    replaces = [Replaces(len(typed), typed) if typed and chance.random() < 0.7 else None for _ in texts]
    drafts = tuple(
        Draft(rank, text, (text,), (0,), -0.5 * rank, (-0.5,), "length", replaced)
        for rank, (text, replaced) in enumerate(zip(texts, replaces, strict=True))
    )
    return DraftsAnswer(f"drafts-{request_id}", "m", drafts, Usage(0, 0, 0, 0, 0), Timings(0, 0, 0, 0, 0), ())


def described(action) -> list:
    match action:
        case Send():
            return ["send", action.request_id, action.prompt, action.suffix, action.is_invoked, action.corrects]
        case Cancel():
            return ["cancel", action.request_id]
        case Report():
            return ["report", action.completion_id, action.event, action.rank, action.elapsed_ms]


class Typist:
    """Does something at random in a `TypingSession`, and records it and what the session did."""

    def __init__(self, options: SessionOptions, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now_ms = 0.0
        self.session = TypingSession(options, lambda: self.now_ms / 1000)
        self.pending: list[int] = []
        self.prompts: dict[int, str] = {}
        self.events: list[dict] = []
        self.steps: list[dict] = []

    def run(self) -> None:
        for _ in range(NUM_EVENTS):
            self.advance_to(self.now_ms + self.chance.lognormvariate(5, 0.8))
            self.something()
        self.do("close")
        for _ in range(NUM_EVENTS_AFTER):
            self.something()

    def advance_to(self, until_ms: float) -> None:
        while (wake_s := self.session.wake_at_s) is not None and wake_s * 1000 <= until_ms:
            self.now_ms = wake_s * 1000 + 1e-6  # seconds to milliseconds and back may round down
            self.do("advance")
        self.now_ms = until_ms

    def something(self) -> None:
        session, chance = self.session, self.chance
        kinds = {"type": 10, "along": 6, "answer": 6 if self.pending else 0, "delete": 1, "move": 1, "fail": 0.5}
        kinds |= dict.fromkeys(("accept", "accept_word", "select_next", "select_previous"), 2) | {
            "dismiss": 0.5,
            "ask": 1,
        }
        (kind,) = chance.choices(list(kinds), list(kinds.values()))
        ghost = session.display.ghost
        match kind:
            case "type":
                self.do("edit", session.text + chance.choice("the ona "), session.after)
            case "along" if ghost is not None:
                self.do("edit", session.text + ghost.text[: chance.randint(1, 3)], session.after)
            case "delete":
                self.do("edit", session.text[: chance.randint(0, len(session.text))], session.after)
            case "move":
                self.do("edit", session.text, chance.choice(AFTER))
            case "answer":
                request_id = chance.choice(self.pending)
                self.pending.remove(request_id)
                self.do("answered", request_id, answer_of(request_id, self.prompts[request_id], chance))
            case "fail" if self.pending:
                self.do(chance.choice(("refused", "broken", "too_long")), self.pending.pop())
            case "along" | "fail":
                return
            case _:
                self.do(kind)

    def do(self, name: str, *args) -> None:
        session = self.session
        match name:
            case "refused":
                actions = session.failed(args[0], BadRequestError("refused", status=400))
            case "too_long":
                error = BadRequestError("too long", status=400, code="context_length_exceeded")
                actions = session.failed(args[0], error)
            case "broken":
                actions = session.failed(args[0], ConnectionFailedError("broken"))
            case _:
                actions = getattr(session, name)(*args)
        sends = [action for action in actions if isinstance(action, Send)]
        self.pending += [send.request_id for send in sends]
        self.prompts |= {send.request_id: send.prompt for send in sends}
        plain = [asdict(arg) if isinstance(arg, DraftsAnswer) else arg for arg in args]
        self.events.append({"at_ms": self.now_ms, "name": name, "args": plain})
        self.steps.append(
            {
                "actions": [described(action) for action in actions],
                "text": session.text,
                "after": session.after,
                "shown": [[s.completion_id, s.rank, s.text, s.replaces] for s in session.display.suggestions],
                "selected": session.display.selected,
                "waits": session.is_waiting,
                "wake_ms": None if session.wake_at_s is None else session.wake_at_s * 1000,
            }
        )


@pytest.mark.parametrize("seed", range(6))
def test_both_sessions_decide_alike(seed):
    options = SessionOptions(
        max_prompt_chars=40, max_suffix_chars=20, max_answers=8, prefetch=bool(seed % 2), corrections=seed > 1
    )
    typist = Typist(options, seed)
    typist.run()
    camel = {
        "requestsPerKey": options.requests_per_key,
        "maxDelayMs": options.max_delay_s * 1000,
        "maxAnswers": options.max_answers,
        "maxPromptChars": options.max_prompt_chars,
        "maxSuffixChars": options.max_suffix_chars,
        "prefetch": options.prefetch,
        "corrections": options.corrections,
    }
    done = subprocess.run(
        [NODE, SCRIPT, BUILT / "index.js"],
        input=json.dumps({"options": camel, "events": typist.events}),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    assert len(steps) == len(typist.steps)
    for event, got, wanted in zip(typist.events, steps, typist.steps, strict=True):
        wake_ms = wanted.pop("wake_ms")
        assert got.pop("wake_ms") == (None if wake_ms is None else pytest.approx(wake_ms)), event
        assert got == wanted, event
    sends = [action[3:5] for step in typist.steps for action in step["actions"] if action[0] == "send"]
    assert {bool(suffix) for suffix, _ in sends} == {is_invoked for _, is_invoked in sends} == {True, False}
    kinds = {action[0] for step in typist.steps for action in step["actions"]}
    assert kinds == {"send", "cancel", "report"}
    assert {"accepted", "dismissed", "shown"} <= {
        action[2] for step in typist.steps for action in step["actions"] if action[0] == "report"
    }
