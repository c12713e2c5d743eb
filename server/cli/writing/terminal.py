"""The text area of `superdraft try`, with suggestions. Needs prompt_toolkit."""

from collections.abc import Callable

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import BufferControl, FormattedTextControl, HSplit, Layout, Window
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput
from prompt_toolkit.layout.utils import explode_text_fragments
from prompt_toolkit.output import Output
from prompt_toolkit.styles import Style

from superdraft.client.async_session import AsyncTypingSession

_GHOST_HINTS = "Tab take · Ctrl-→ word · Alt-] Alt-[ others · Esc hide · Ctrl-D quit"
_HINTS = "Alt-\\ ask for drafts · Ctrl-D quit"
_STYLE = Style.from_dict({"ghost": "ansibrightblack", "bar": "reverse", "bar.error": "reverse ansired"})
# Terminals send Alt as Escape and a key: wait this long for the key. Alt-[ also begins the arrow keys.
_ESCAPE_WAIT_S = 0.05


class Terminal:
    """The text area over a typing session.

    Args:
        make_session: makes the session, given a callback for changes.
        text: initial text.
        input: source of keys, for tests; None: the terminal.
        output: for tests; None: the terminal.
    """

    def __init__(
        self,
        make_session: Callable[[Callable[[], None]], AsyncTypingSession],
        text: str = "",
        input: Input | None = None,  # noqa: A002 (prompt_toolkit's own name for it)
        output: Output | None = None,
    ) -> None:
        self.buffer = Buffer(multiline=True)
        self.buffer.text = text
        self.buffer.cursor_position = len(text)
        control = BufferControl(self.buffer, input_processors=[_GhostText(self)])
        bar = Window(FormattedTextControl(self._bar), height=1, style="class:bar")
        self._app: Application[None] = Application(
            layout=Layout(HSplit([Window(control, wrap_lines=True), bar])),
            key_bindings=self._keys(),
            style=_STYLE,
            full_screen=True,
            input=input,
            output=output,
        )
        # Not the buffer's own events: during a key press they come before the cursor is at its final place.
        self._app.key_processor.after_key_press += lambda _: self._follow()
        self._app.timeoutlen = self._app.ttimeoutlen = _ESCAPE_WAIT_S
        self.session = make_session(self._app.invalidate)

    async def run(self) -> str:
        """Show the text area until the user leaves; returns the text."""
        async with self.session:
            self._follow()
            await self._app.run_async()
        return self.buffer.text

    @property
    def ghost_text(self) -> str:
        """The suggestion after the cursor; behind an arrow if it takes the place of a mistyped word."""
        ghost = self.session.display.ghost
        return "" if ghost is None else f"{' → ' if ghost.replaces else ''}{ghost.text}"

    def _follow(self) -> None:
        """Pass the text around the cursor to the session."""
        document = self.buffer.document
        self.session.edit(document.text_before_cursor, document.text_after_cursor)

    def _bar(self) -> StyleAndTextTuples:
        display, error = self.session.display, self.session.error
        if error is not None:
            return [("class:bar.error", f" {error} ")]
        parts = [f" {self.session.latency_s * 1000:4.0f} ms"]
        if display.ghost is not None:
            rank = f"{display.selected + 1}/{len(display.suggestions)}"
            parts += [rank, f"score {display.ghost.score:.2f}", _GHOST_HINTS]
        elif self.session.is_waiting:
            parts += ["...", _HINTS]
        else:
            parts += [_HINTS, *self._remarks()]
        return [("class:bar", f"{' · '.join(parts)} ")]

    def _remarks(self) -> tuple[str, ...]:
        """Why there may be nothing inside a line."""
        return self.session.warnings[:1] if self.buffer.document.current_line_after_cursor else ()

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        has_ghost = Condition(lambda: bool(self.ghost_text))
        actions: list[tuple[tuple[str, ...], Callable[[], None]]] = [
            (("tab",), lambda: self._take(self.session.accept)),
            (("c-right",), lambda: self._take(self.session.accept_word)),
            (("escape", "]"), lambda: self.session.select_next()),
            (("escape", "["), lambda: self.session.select_previous()),
            (("escape",), lambda: self.session.dismiss()),
        ]
        for sequence, action in actions:
            keys.add(*sequence, filter=has_ghost)(_handler(action))
        keys.add("tab", filter=~has_ghost)(_handler(lambda: None))
        keys.add("escape", "\\", filter=~has_ghost)(_handler(lambda: self.session.ask()))
        for key in ("c-c", "c-d", "c-q"):
            keys.add(key)(_handler(lambda: self._app.exit()))
        return keys

    def _take(self, accept: Callable[[], str]) -> None:
        ghost = self.session.display.ghost
        text = accept()
        if ghost is not None and ghost.replaces:
            self.buffer.delete_before_cursor(len(ghost.replaces))
        self.buffer.insert_text(text)


class _GhostText(Processor):
    """Inserts the ghost text after the cursor."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        """The line, with the ghost text if the cursor is in it."""
        document = transformation_input.document
        first_line, *more = self._terminal.ghost_text.split("\n")
        ghost = first_line + ("⏎" if more else "")
        if not ghost or transformation_input.lineno != document.cursor_position_row:
            return Transformation(transformation_input.fragments)
        chars = explode_text_fragments(transformation_input.fragments)
        start, length = transformation_input.source_to_display(document.cursor_position_col), len(ghost)
        return Transformation(
            [*chars[:start], ("class:ghost", ghost), *chars[start:]],
            source_to_display=lambda at: at + length if at > start else at,
            display_to_source=lambda at: max(start, at - length) if at > start else at,
        )


def _handler(action: Callable[[], None]) -> Callable[[KeyPressEvent], None]:
    def handle(event: KeyPressEvent) -> None:  # noqa: ARG001
        action()

    return handle
