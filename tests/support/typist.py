"""Typing sessions with a manual clock."""

from superdraft.client import Cancel, Draft, DraftsAnswer, Replaces, Report, Send, Timings, TypingSession, Usage


def answer(completion_id, *texts, replaced="", others=()):
    """An answer that contains drafts with these texts, which replace the end of the prompt, and some that do not."""
    replaces = Replaces(len(replaced), replaced) if replaced else None
    kinds = [(text, replaces) for text in texts] + [(text, None) for text in others]
    drafts = tuple(
        Draft(i, text, (text,), (i,), -0.5 - i, (-0.5,), "length", kind) for i, (text, kind) in enumerate(kinds)
    )
    return DraftsAnswer(completion_id, "tiny", drafts, Usage(1, 1, 2, 0, 1), Timings(0, 0, 0, 0, 0), ())


class Bench:
    """A session, its clock, and the actions so far."""

    def __init__(self, options=None):
        self.now_s = 100.0
        self.session = TypingSession(options, lambda: self.now_s)
        self.sent, self.cancelled, self.reports = [], [], []

    def do(self, method, *args):
        """Call a method of the session; record and return its actions."""
        actions = getattr(self.session, method)(*args)
        for action in actions:
            kind = {Send: self.sent, Cancel: self.cancelled, Report: self.reports}[type(action)]
            kind.append(action)
        return actions

    def type(self, text, pause_s=0.15):
        """Type the characters of a text, one by one."""
        for char in text:
            self.wait(pause_s)
            self.do("edit", self.session.text + char)

    def wait(self, seconds):
        """Let time pass, and call `advance` whenever the session asks for it."""
        until_s = self.now_s + seconds
        while (wake_at_s := self.session.wake_at_s) is not None and wake_at_s <= until_s:
            self.now_s = max(self.now_s, wake_at_s)
            self.do("advance")
        self.now_s = until_s

    def reply(self, *texts, **kinds):
        """Answer the latest request with these drafts; keywords as in `answer`."""
        request_id = self.sent[-1].request_id
        return self.do("answered", request_id, answer(f"drafts-{request_id}", *texts, **kinds))

    @property
    def events(self):
        return [(report.event, report.completion_id, report.rank) for report in self.reports]

    @property
    def ghost(self):
        ghost = self.session.display.ghost
        return None if ghost is None else ghost.text

    @property
    def texts(self):
        return [suggestion.text for suggestion in self.session.display.suggestions]


def started(text="Thank you", *drafts, options=None):
    """A session in which `text` was typed and answered."""
    bench = Bench(options)
    bench.do("edit", text)
    bench.wait(1.0)
    assert [send.prompt for send in bench.sent] == [text]
    bench.reply(*drafts)
    return bench
