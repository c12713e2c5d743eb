r"""The editor's documents, with lines as LSP has them: ended by `\n`, `\r\n` or `\r` and nothing else.

pygls divides texts as `str.splitlines` does, also at form feeds and other separators, and would apply changes to a
wrong place in files that have them.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from lsprotocol import types
from pygls.uris import to_fs_path
from pygls.workspace import TextDocument, Workspace

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


class Document(TextDocument):
    """One document."""

    @property
    def lines(self) -> Sequence[str]:
        """The lines with their ends."""
        return tuple(_LINE.findall(self.source))


class Documents(Workspace):
    """All documents, kept in step with the editor's by pygls."""

    def _create_text_document(
        self, doc_uri: str, source: str | None = None, version: int | None = None, language_id: str | None = None
    ) -> TextDocument:
        return Document(
            doc_uri,
            source=source,
            version=version,
            language_id=language_id,
            sync_kind=self._sync_kind,
            position_codec=self._position_codec,
        )


def divided(document: TextDocument, position: types.Position) -> tuple[str, str]:
    """The text before and after a position."""
    offset = document.offset_at_position(types.Position(position.line, position.character))  # pygls changes it
    return document.source[:offset], document.source[offset:]


def divided_after(document: TextDocument, change: types.TextDocumentContentChangeEvent) -> tuple[str, str] | None:
    """The text before and after the end of the latest change; None if the change replaced the whole document."""
    if not isinstance(change, types.TextDocumentContentChangePartial):
        return None
    before, _ = divided(document, change.range.start)
    offset = len(before) + len(change.text)
    return document.source[:offset], document.source[offset:]


def path_in(documents: Workspace, document: TextDocument) -> str:
    """The document's path below the workspace, or its file's name; its language stands for a missing ending."""
    path = Path(to_fs_path(document.uri) or document.uri.rpartition(":")[2])
    root = documents.root_path
    relative = path.relative_to(root) if root and path.is_relative_to(root) else Path(path.name)
    name = relative.as_posix()
    return name if relative.suffix or not document.language_id else f"{name}.{document.language_id}"
