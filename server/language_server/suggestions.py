"""Drafts as an editor can show them: text to insert at the cursor."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Unpack

from lsprotocol import types

from superdraft.client import Draft, DraftsAnswer, FeedbackReceipt, Suggestion
from superdraft.client.async_session import TypingClient
from superdraft.client.wire import DraftsOptions

ACCEPTED, SHOWN = "superdraft.accepted", "superdraft.shown"

_BLANK_LINES = re.compile(r"(?:[ \t]*(?:\r\n|\r|\n))+")


class InsertableDrafts:
    """A client whose answers hold only what can be inserted at the cursor.

    Args:
        client: sends the requests.
    """

    def __init__(self, client: TypingClient) -> None:
        self._client = client

    async def complete(
        self,
        prompt: str,
        num_drafts: int = 3,
        max_tokens: int = 16,
        *,
        max_retries: int | None = None,
        **options: Unpack[DraftsOptions],
    ) -> DraftsAnswer:
        """Return drafts for a prompt."""
        answer = await self._client.complete(prompt, num_drafts, max_tokens, max_retries=max_retries, **options)
        by_text: dict[str, Draft] = {}
        for draft in answer.drafts:
            text = draft.text.rstrip() if draft.replaces else insertable(draft.text, prompt)
            if text:
                by_text.setdefault(text, replace(draft, text=text))
        return replace(answer, drafts=tuple(by_text.values()))

    async def feedback(
        self, completion_id: str, event: str, rank: int = 0, *, elapsed_ms: float | None = None
    ) -> FeedbackReceipt:
        """Report what the user did with a draft."""
        return await self._client.feedback(completion_id, event, rank, elapsed_ms=elapsed_ms)


def insertable(draft: str, before: str) -> str:
    """The part of a draft to insert at the cursor; empty if there is none.

    White space at its end goes. On a line that has only an indent, a draft that begins with a line break would leave
    this line blank: the draft's first line takes the cursor's line if it is indented as much, and there is nothing to
    insert if it is indented less.

    Args:
        draft: the draft's text.
        before: the text before the cursor.
    """
    text = draft.rstrip()
    indent = re.split(r"[\r\n]", before)[-1]
    blank_lines = _BLANK_LINES.match(text)
    if indent == "" or indent.strip() or blank_lines is None:
        return text
    rest = text[blank_lines.end() :]
    return rest[len(indent) :] if rest.startswith(indent) else ""


def inline_items(
    suggestions: Sequence[Suggestion], uri: str, position: types.Position, num_units: Callable[[str], int]
) -> list[types.InlineCompletionItem]:
    """LSP's items. The command of each reports that it was accepted.

    The range is given although it is empty, unless a word is corrected: VS Code would replace the word at the cursor
    otherwise.

    Args:
        suggestions: for this position.
        uri: of the document.
        position: of the cursor.
        num_units: the length of a text within a line, in the editor's units.
    """

    def start(suggestion: Suggestion) -> types.Position:
        return types.Position(position.line, position.character - num_units(suggestion.replaces))

    return [
        types.InlineCompletionItem(
            insert_text=suggestion.text,
            range=types.Range(start(suggestion), position),
            command=types.Command("Accepted", ACCEPTED, arguments=[uri, suggestion.completion_id, suggestion.rank]),
        )
        for suggestion in suggestions
    ]
