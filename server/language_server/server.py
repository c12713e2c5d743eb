"""The language server over standard input and output.

Texts of documents are in no log and in no message.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, BinaryIO

from lsprotocol import types
from pygls.lsp.server import LanguageServer

from superdraft.client.errors import ClientError
from superdraft.client.wire import API_KEY_VARIABLE, URL_VARIABLE
from superdraft.server.language_server.connection import Connection, OpenEngine, origin_of
from superdraft.server.language_server.documents import Documents, divided, divided_after, path_in
from superdraft.server.language_server.notices import Notices
from superdraft.server.language_server.options import EditorOptions, read_options
from superdraft.server.language_server.suggestions import ACCEPTED, SHOWN, inline_items
from superdraft.server.language_server.typing import DocumentTyping

if TYPE_CHECKING:
    from pygls.server import ServerErrors


class DraftsServer(LanguageServer):
    """The state of the language server.

    Args:
        url: of a server; None: the engine in this process. The editor's option wins.
        api_key: of the server. The editor's option wins.
        open_engine: loads the engine, and returns a transport to it.
    """

    def __init__(self, url: str | None, api_key: str | None, open_engine: OpenEngine) -> None:
        super().__init__("superdraft", version("superdraft"))
        self._url, self._api_key, self._open_engine = url, api_key, open_engine
        self.options = EditorOptions()
        self.notices = Notices(self._show, self.log)
        self._connection: Connection | None = None
        self._typings: dict[str, DocumentTyping] = {}

    def log(self, message: str) -> None:
        """Write to the editor's log."""
        self.window_log_message(types.LogMessageParams(types.MessageType.Info, message))

    def _show(self, message: str) -> None:
        self.window_show_message(types.ShowMessageParams(types.MessageType.Error, f"Superdraft: {message}"))

    def report_server_error(self, error: Exception, source: "ServerErrors") -> None:  # noqa: ARG002
        """Log the kind of an unexpected error; its message may quote a document."""
        self.log(f"Unexpected {type(error).__name__} in the language server.")

    def set_up(self, params: types.InitializeParams) -> None:
        """Take over the editor's options, and replace pygls' own documents."""
        self.options, faults = read_options(params.initialization_options)
        for fault in faults:
            self.notices.fault(fault)
        old = self.protocol.workspace
        folders = list(params.workspace_folders or [])
        sync = types.TextDocumentSyncKind.Incremental
        self.protocol._workspace = Documents(old.root_uri, sync, folders, old.position_encoding)

    async def connect(self, _: types.InitializedParams) -> None:
        """Open the connection. Failures are shown, and the next request tries again where that makes sense."""
        url = self.options.url or self._url
        self._connection = connection = Connection(url, self._key_for(url), self._open_engine)
        if url is None:
            self.log("Loading the model ...")
        try:
            self.log(f"Drafts come from {await connection.open()}.")
        except (ClientError, ValueError) as error:
            self.notices.fault(str(error))

    def _key_for(self, url: str | None) -> str | None:
        """The key to send to a server.

        The user's own goes only to the server that the user names, on the command line or in the environment. The
        editor's options may be those of a repository, which could name any server.

        Returns:
            The key; an empty one: none. None: that of the environment, if there is one.
        """
        if self.options.api_key is not None or url is None:
            return self.options.api_key
        named = [known for known in (self._url, os.environ.get(URL_VARIABLE)) if known]
        if origin_of(url) in map(origin_of, named):
            return self._api_key
        if self._api_key is not None or os.environ.get(API_KEY_VARIABLE):
            self.log(
                "The API key is not sent to the URL in the editor's options, which the command line does not name. Set "
                f"apiKey in the options, start superdraft lsp --url with it, or set {URL_VARIABLE}."
            )
        return ""

    async def suggest(self, params: types.InlineCompletionParams) -> types.InlineCompletionList:
        """The items for a position; none before the connection is open."""
        uri = params.text_document.uri
        document = self.workspace.get_text_document(uri)
        typing = await self._typing(uri)
        if typing is None:
            return types.InlineCompletionList([])
        before, after = divided(document, params.position)
        is_invoked = params.context.trigger_kind == types.InlineCompletionTriggerKind.Invoked
        found = await typing.suggestions(before, after, is_invoked=is_invoked)
        num_units = document.position_codec.client_num_units
        return types.InlineCompletionList(inline_items(found, uri, params.position, num_units))

    async def _typing(self, uri: str) -> DocumentTyping | None:
        document = self.workspace.get_text_document(uri)
        languages = self.options.languages
        client = None if self._connection is None else self._connection.client
        if client is None or (languages and document.language_id not in languages):
            return None
        typing = self._typings.get(uri)
        if typing is None:
            path = path_in(self.workspace, document)
            typing = self._typings[uri] = DocumentTyping(client, self.options, path, self.notices.requested)
            await typing.start()
        return typing

    def follow(self, params: types.DidChangeTextDocumentParams) -> None:
        """Tell a document's typing session about a change. Documents without suggestions so far have no session."""
        typing = self._typings.get(params.text_document.uri)
        if typing is None or not params.content_changes:
            return
        document = self.workspace.get_text_document(params.text_document.uri)
        texts = divided_after(document, params.content_changes[-1])
        if texts is None:
            typing.hide()
        else:
            typing.typed(*texts)

    def accepted(self, uri: str, completion_id: str, rank: int) -> None:
        """Record that the editor inserted a suggestion."""
        if (typing := self._typings.get(uri)) is not None:
            typing.session.accepted(completion_id, rank)

    def shown(self, uri: str, completion_id: str, rank: int) -> None:
        """Record that the editor shows this suggestion instead of the best one."""
        if (typing := self._typings.get(uri)) is not None:
            typing.session.select(completion_id, rank)

    async def closed(self, params: types.DidCloseTextDocumentParams) -> None:
        """End a document's typing session."""
        await self._end(params.text_document.uri)

    async def _end(self, uri: str) -> None:
        if (typing := self._typings.pop(uri, None)) is not None:
            await typing.close()

    async def disconnect(self, _: None) -> None:
        """End all sessions, send their last reports, and close the connection."""
        await asyncio.gather(*(self._end(uri) for uri in list(self._typings)))
        if self._connection is not None:
            await self._connection.close()


def make_server(url: str | None, api_key: str | None, open_engine: OpenEngine) -> DraftsServer:
    """A language server with its features; see `DraftsServer`."""
    server = DraftsServer(url, api_key, open_engine)
    features: dict[str, Callable[..., Any]] = {
        types.INITIALIZE: server.set_up,
        types.INITIALIZED: server.connect,
        types.SHUTDOWN: server.disconnect,
        types.TEXT_DOCUMENT_DID_CHANGE: server.follow,
        types.TEXT_DOCUMENT_DID_CLOSE: server.closed,
    }
    for name, method in features.items():
        server.feature(name)(partial(method))  # pygls sets attributes, which a method does not take
    options = types.InlineCompletionOptions()  # without them pygls does not announce the feature
    server.feature(types.TEXT_DOCUMENT_INLINE_COMPLETION, options)(partial(server.suggest))
    server.command(ACCEPTED)(partial(server.accepted))
    server.command(SHOWN)(partial(server.shown))
    return server


def run(server: DraftsServer, stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Serve an editor until it ends the connection."""
    logging.getLogger("pygls").setLevel(logging.CRITICAL + 1)  # its records quote whole messages
    server.start_io(stdin, stdout)
