"""The language server as an editor runs it: a process or a thread, spoken to over its standard input and output."""

import asyncio
import contextlib
import socket
import sys
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from unittest import mock

import pytest
from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pygls.io_ import run_async
from pygls.lsp.client import LanguageClient
from support.engine import FakeEngine
from support.models import tiny_model_folder
from support.serving import MAIN, num_commands, serving
from support.waiting import PATIENCE_S, until

from superdraft.decoding.config import EngineConfig
from superdraft.decoding.outputs import Replaced
from superdraft.server.app import create_app
from superdraft.server.cli.writing import lsp
from superdraft.server.observe import log_config
from superdraft.server.settings import Settings

URI = "file:///work/project/src/mail.py"
RIGHT_KEY, WRONG_KEY = "r" * 24, "w" * 24


@dataclass
class ScriptedEngine(FakeEngine):
    """A fake engine whose drafts have these texts, are all probable, and end by themselves."""

    max_model_len: int = 4000
    config: EngineConfig = field(default_factory=lambda: EngineConfig(max_num_drafts=8))
    texts: tuple[str, ...] = (" for your email", " very much", " again")
    replaces: Replaced | None = None

    def __post_init__(self):
        self.max_distinct_drafts = len(self.texts)

    def _draft(self, index, job):
        draft = super()._draft(index, job)
        replaces = self.replaces if job.params.corrections else None
        return replace(draft, text=self.texts[index], score=-0.1 * index, finish_reason="stop", replaces=replaces)

    @property
    def prompts(self):
        return ["".join(map(chr, job.token_ids)) for job in self.seen]


class Editor:
    """An editor with one document.

    Args:
        client: connected to the language server.
    """

    def __init__(self, client):
        self.client = client
        self.shown, self.logged = [], []
        client.feature(types.WINDOW_SHOW_MESSAGE)(lambda params: self.shown.append(params.message))
        client.feature(types.WINDOW_LOG_MESSAGE)(lambda params: self.logged.append(params.message))
        self.version = 0

    def open(self, text, language="python", uri=URI):
        item = types.TextDocumentItem(uri, language, 0, text)
        self.client.text_document_did_open(types.DidOpenTextDocumentParams(item))

    def change(self, text, start, end=None, uri=URI):
        """Replace the text between two positions, given as (line, character)."""
        self.version += 1
        area = types.Range(types.Position(*start), types.Position(*(end or start)))
        document = types.VersionedTextDocumentIdentifier(self.version, uri)
        change = types.TextDocumentContentChangePartial(text=text, range=area)
        self.client.text_document_did_change(types.DidChangeTextDocumentParams(document, [change]))

    def ask(self, line, character, *, is_invoked=True, uri=URI, request_id=None):
        """Ask for suggestions; returns the request's future."""
        kinds = types.InlineCompletionTriggerKind
        context = types.InlineCompletionContext(kinds.Invoked if is_invoked else kinds.Automatic)
        position = types.Position(line, character)
        params = types.InlineCompletionParams(context, types.TextDocumentIdentifier(uri), position)
        return self.client.protocol.send_request_async(types.TEXT_DOCUMENT_INLINE_COMPLETION, params, request_id)

    async def items(self, line, character, **options):
        return list((await self.ask(line, character, **options)).items)

    async def texts(self, line, character, **options):
        return [item.insert_text for item in await self.items(line, character, **options)]

    async def run(self, command):
        """Run a command of an item, as editors do when it was inserted."""
        params = types.ExecuteCommandParams(command=command.command, arguments=command.arguments)
        return await self.client.workspace_execute_command_async(params)


@contextlib.asynccontextmanager
async def process(client, **flags):
    """The command as an editor starts it."""
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    await client.start_io(sys.executable, "-c", MAIN, "lsp", *words)
    try:
        yield
        async with asyncio.timeout(PATIENCE_S):
            assert await client._server.wait() == 0
    finally:
        if client._server.returncode is None:
            client._server.kill()
        await client.stop()


@contextlib.asynccontextmanager
async def thread(client, **flags):
    """The command in a thread, with a socket as its standard input and output: it needs no second to start."""
    ours, theirs = socket.socketpair()
    with theirs, theirs.makefile("rb") as stdin, theirs.makefile("wb") as stdout:
        reader, writer = await asyncio.open_connection(sock=ours)
        client.protocol.set_writer(writer)
        reading = asyncio.create_task(run_async(client._stop_event, reader, client.protocol))
        with (
            mock.patch.object(sys, "stdin", SimpleNamespace(buffer=stdin)),
            mock.patch.object(lsp, "_take_stdout", return_value=stdout),
        ):
            command = asyncio.create_task(asyncio.to_thread(lsp.main, **flags))
            try:
                yield
                await asyncio.wait_for(command, PATIENCE_S)  # by the editor's word, with its input still open
            finally:
                writer.close()
                await asyncio.gather(command, reading)


@contextlib.asynccontextmanager
async def editing(start=thread, options=None, encodings=None, root=None, awaits=1, **flags):
    """An editor whose language server runs with these flags, and has told as many things as awaited."""
    client = LanguageClient("test", "1")
    editor = Editor(client)
    async with start(client, **flags):
        general = types.GeneralClientCapabilities(position_encodings=encodings)
        params = types.InitializeParams(
            capabilities=types.ClientCapabilities(general=general), root_uri=root, initialization_options=options
        )
        editor.server = await client.initialize_async(params)
        client.initialized(types.InitializedParams())
        await until(lambda: len(editor.shown) + len(editor.logged) >= awaits)
        yield editor
        await client.shutdown_async(None)
        client.exit(None)


@pytest.fixture
def engine():
    return ScriptedEngine()


@pytest.fixture
def unused_url():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def counted(app, event, rank):
    """How often the server counted this event."""
    name = "superdraft_draft_events_total"
    registry = app.state.service.metrics.registry
    return registry.get_sample_value(name, {"event": event, "rank": str(rank)}) or 0


def test_conversation(app, engine, url):
    """Items to cycle through, an accepted one, what it does to feedback, and the next suggestions."""

    async def run():
        async with editing(process, url=url, root="file:///work/project") as editor:
            capabilities = editor.server.capabilities
            assert capabilities.inline_completion_provider is not None
            assert set(capabilities.execute_command_provider.commands) == {"superdraft.accepted", "superdraft.shown"}
            assert editor.logged == ["Drafts come from tiny."]
            editor.open("Thank you")
            items = await editor.items(0, 9)
            assert [item.insert_text for item in items] == list(engine.texts)
            assert all(item.range.start == item.range.end == types.Position(0, 9) for item in items)
            assert [item.command.arguments[2] for item in items] == [0, 1, 2]
            editor.change(items[1].insert_text, (0, 9))
            await editor.run(items[1].command)
            await until(lambda: counted(app, "accepted", 1) == 1)
            assert await editor.texts(0, 19, is_invoked=False) == list(engine.texts)
            assert engine.prompts[-1] == "Thank you very much"
            await editor.run(items[1].command)
        assert counted(app, "accepted", 1) == 1
        assert counted(app, "shown", 1) == 1
        assert counted(app, "accepted", 0) == 0

    asyncio.run(run())


def test_suggestion_counts_as_shown_once_it_stays(app, engine, url):
    async def run():
        async with editing(url=url) as editor:
            editor.open("Thank you")
            items = await editor.items(0, 9)
            await until(lambda: counted(app, "shown", 0) == 1)
            await editor.run(types.Command("Shown", "superdraft.shown", arguments=items[2].command.arguments))
            await until(lambda: counted(app, "shown", 2) == 1)
        assert counted(app, "dismissed", 0) == counted(app, "dismissed", 2) == 1

    asyncio.run(run())


def test_nothing_is_reported_if_the_editor_says_so(app, engine, url):
    async def run():
        async with editing(url=url, options={"report": False}) as editor:
            editor.open("Thank you")
            (item, *_) = await editor.items(0, 9)
            await editor.run(item.command)
        assert counted(app, "accepted", 0) == counted(app, "shown", 0) == 0

    asyncio.run(run())


@pytest.mark.parametrize(("encoding", "column"), [("utf-16", 21), ("utf-8", 27), ("utf-32", 19)])
def test_corrections_have_the_range_of_the_mistyped_word(engine, url, encoding, column):
    """Only where the editor's options ask for them, and in prose."""
    engine.replaces = Replaced("tomoröw")

    async def run(language, options):
        async with editing(url=url, encodings=[encoding], options=options) as editor:
            editor.open("x\n🙂é🙂 See you tomoröw\n", language, uri="file:///work/project/notes")
            items = await editor.items(1, column, uri="file:///work/project/notes")
            return [(item.insert_text, item.range.start.character, item.range.end.character) for item in items]

    length = 8 if encoding == "utf-8" else 7
    found = asyncio.run(run("markdown", {"corrections": True}))
    assert found[0] == (" for your email", column - length, column)
    assert engine.seen[-1].params.corrections
    asyncio.run(run("python", {"corrections": True}))
    assert not engine.seen[-1].params.corrections
    asyncio.run(run("markdown", {}))
    assert not engine.seen[-1].params.corrections


@pytest.mark.parametrize(("encoding", "column"), [("utf-16", 8), ("utf-8", 13), ("utf-32", 6), (None, 8)])
def test_positions_count_in_the_encoding_agreed_on(engine, url, encoding, column):
    """The line has two characters beyond the first plane, which UTF-16 counts twice, and an accent."""

    async def run():
        async with editing(url=url, encodings=encoding and [encoding]) as editor:
            assert editor.server.capabilities.position_encoding in (encoding, encoding or "utf-16")
            editor.open("x\n🙂é🙂 ab cd\nend\n")
            await editor.items(1, column)
            assert engine.prompts[-1] == "x\n🙂é🙂 ab"
            editor.change("Z", (1, column - 1), (1, column))
            await editor.items(1, column)
            assert engine.prompts[-1] == "x\n🙂é🙂 aZ"

    asyncio.run(run())


@pytest.mark.parametrize("before", ["a\fb\n", "a\u2028b\r\n", "a\x85b\r"])
def test_lines_end_where_the_protocol_says(engine, url, before):
    async def run():
        async with editing(url=url) as editor:
            editor.open(f"{before}Thank\n")
            editor.change(" you", (1, 5))
            await editor.items(1, 9)
            assert engine.prompts[-1] == f"{before}Thank you"

    asyncio.run(run())


def test_changes_are_followed(engine, url):
    async def run():
        async with editing(url=url) as editor:
            editor.open("one\ntwo\nthree\n")
            editor.change("", (0, 0), (1, 0))
            editor.change("and\nmore ", (1, 0), (1, 2))
            await editor.items(2, 5)
            assert engine.prompts == ["two\nand\nmore "]

    asyncio.run(run())


def test_typing_along_asks_the_server_once(engine, url):
    async def run():
        async with editing(url=url) as editor:
            editor.open("Thank you")
            await editor.items(0, 9)
            for i, letter in enumerate(" for y"):
                editor.change(letter, (0, 9 + i))
                texts = await editor.texts(0, 10 + i, is_invoked=False)
                assert texts[0] == " for your email"[i + 1 :]
            assert texts == ["our email"]
        assert len(engine.seen) == 1

    asyncio.run(run())


def test_request_of_a_key_press_is_under_way_before_the_editor_asks(engine, url):
    async def run():
        async with editing(url=url) as editor:
            editor.open("Thank you")
            await editor.items(0, 9)
            editor.change("!", (0, 9))
            await until(lambda: len(engine.seen) == 2)
            assert engine.prompts[-1] == "Thank you!"

    asyncio.run(run())


@pytest.mark.parametrize("types_on", [False, True])
def test_cancelled_request_ends_unless_the_user_types_on(app, engine, url, stepwise, types_on):
    async def run():
        async with editing(url=url) as editor:
            editor.open("Thank you")
            request = editor.ask(0, 9, request_id="one")
            await until(lambda: engine.seen)
            editor.client.cancel_request(types.CancelParams("one"))
            with pytest.raises(JsonRpcException, match="cancel"):
                await request
            if types_on:
                editor.change(" ", (0, 9))
                request = editor.ask(0, 10, is_invoked=False)
                stepwise.release(1000)
                assert (await request).items[0].insert_text == "for your email"
            else:
                await until(lambda: num_commands(app) == 1)
                stepwise.release(1000)
                await until(lambda: engine.cancelled)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "at", "drafts", "shown"),
    [
        ("f()\n", (0, 2), ("a, b)\nc", "a)"), ["a, b", "a"]),  # the bracket is there already
        ("x =  + 1\n", (0, 4), ("y\nz", "y"), ["y"]),  # inside a line
        ("def f():\n    \n", (1, 4), ("\n    a", "a", "    b\n", "\nc"), ["a", "    b"]),  # at an indent
        ("def f():\n\n", (1, 0), ("\n    a",), ["\n    a"]),
        ("a", (0, 1), ("   \n", " b \n\n"), [" b"]),
    ],
)
def test_items_can_be_inserted_at_the_cursor(engine, url, text, at, drafts, shown):
    engine.texts, engine.max_distinct_drafts = drafts, len(drafts)

    async def run():
        async with editing(url=url, options={"numDrafts": 4}) as editor:
            editor.open(text)
            assert await editor.texts(*at) == shown

    asyncio.run(run())


def test_server_that_is_down_is_told_once(unused_url):
    async def run():
        async with editing(url=unused_url) as editor:
            editor.open("Thank you")
            assert await editor.items(0, 9) == []
            editor.change(" v", (0, 9))
            assert await editor.items(0, 11) == []
            (message,) = editor.shown
            assert message.startswith(f"Superdraft: No server answers at {unused_url}")
            assert message.endswith("Is `superdraft serve` running there?")

    asyncio.run(run())


def test_server_may_be_started_later(app, engine, unused_url):
    async def run():
        async with editing(url=unused_url) as editor:
            editor.open("Thank you")
            assert await editor.items(0, 9) == []
            with serving(app, int(unused_url.rpartition(":")[2])):
                await until(lambda: engine.seen)  # asked again after a while, without a key press
                assert await editor.texts(0, 9) == list(engine.texts)
                await until(lambda: "The server answers again." in editor.logged)

    asyncio.run(run())


def test_wrong_key_is_told(engine):
    app = create_app(Settings(api_keys=f"me={RIGHT_KEY}"), engine, model_name="tiny")

    async def run(url):
        async with editing(url=url, options={"apiKey": WRONG_KEY}) as editor:
            (message,) = editor.shown
            assert "key" in message
            assert WRONG_KEY not in message
        async with editing(url=url, options={"apiKey": RIGHT_KEY}) as editor:
            assert editor.logged == ["Drafts come from tiny."]

    with serving(app) as url:
        asyncio.run(run(url))


def test_the_users_key_goes_only_to_the_server_that_the_user_names(engine, monkeypatch, unused_url):
    """The editor's options may be those of a repository."""
    app = create_app(Settings(api_keys=f"me={RIGHT_KEY}"), engine, model_name="tiny")

    async def run(url):
        async with editing(url=unused_url, api_key=RIGHT_KEY, options={"url": url}, awaits=2) as editor:
            (message,) = editor.shown
            assert "requires an API key" in message  # none came
            assert "is not sent to the URL in the editor's options" in editor.logged[0]
            assert RIGHT_KEY not in editor.logged[0]
        monkeypatch.setenv("SUPERDRAFT_API_KEY", RIGHT_KEY)
        async with editing(options={"url": url}, awaits=2) as editor:
            assert "requires an API key" in editor.shown[0]
        monkeypatch.setenv("SUPERDRAFT_URL", f"{url}/v1")
        async with editing(options={"url": f"{url}/"}) as editor:
            assert editor.logged == ["Drafts come from tiny."]

    with serving(app) as url:
        asyncio.run(run(url))


def test_options_of_the_editor(engine, url, unused_url):
    options = {
        "url": url,
        "numDrafts": 2,
        "maxTokens": 5,
        "singleLine": True,
        "model": "superdraft",
        "maxPrefixChars": 8,
        "languages": ["markdown"],
    }

    async def run():
        async with editing(url=unused_url, options=options) as editor:
            editor.open("0123456789", "python", "file:///a.py")
            editor.open("0123456789", "markdown", "file:///a.md")
            assert await editor.items(0, 10, uri="file:///a.py") == []
            assert len(await editor.items(0, 10, uri="file:///a.md")) == 2
            (job,) = engine.seen
            assert (job.params.num_drafts, job.params.max_tokens, job.params.single_line) == (2, 5, True)
            assert engine.prompts == ["23456789"]

    asyncio.run(run())


def test_wrong_options_are_told_and_the_others_hold(engine, url):
    options = {"numDraft": 2, "maxTokens": "5", "requestsPerKey": 0, "apiKey": 7, "numDrafts": 1}

    async def run():
        async with editing(url=url, options=options, awaits=5) as editor:
            assert editor.shown == [
                "Superdraft: initializationOptions has no numDraft; there are url, apiKey, model, numDrafts, "
                "maxTokens, singleLine, corrections, report, requestsPerKey, maxDelayMs, maxPrefixChars, "
                "maxSuffixChars, languages.",
                "Superdraft: initializationOptions: maxTokens must be a whole number of at least 1, got a string.",
                "Superdraft: initializationOptions: requestsPerKey must be a number above 0 and at most 1, got 0.",
                "Superdraft: initializationOptions: apiKey must be a string that is not empty, got int.",
            ]
            editor.open("Thank you")
            assert len(await editor.items(0, 9)) == 1

    asyncio.run(run())


def test_engine_in_this_process(tmp_path):
    folder = tiny_model_folder(tmp_path, "llama")

    async def run():
        async with editing(process, model=str(folder), awaits=2) as editor:
            assert editor.logged == ["Loading the model ...", "Drafts come from llama."]
            editor.open("Thank you")
            assert await editor.items(0, 9)

    asyncio.run(run())


def test_model_that_cannot_be_loaded_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(log_config, "configure_logging", lambda *_: None)  # of this process

    async def run():
        async with editing(model=str(tmp_path / "none"), awaits=2) as editor:
            (message,) = editor.shown
            assert str(tmp_path / "none") in message
            editor.open("Thank you")
            assert await editor.items(0, 9) == []

    asyncio.run(run())


def test_closed_document_has_no_session(engine, url):
    async def run():
        async with editing(url=url) as editor:
            editor.open("Thank you")
            await editor.items(0, 9)
            document = types.TextDocumentIdentifier(URI)
            editor.client.text_document_did_close(types.DidCloseTextDocumentParams(document))
            editor.open("Thank you")
            assert await editor.texts(0, 9) == list(engine.texts)
            assert len(engine.seen) == 2

    asyncio.run(run())


def test_texts_are_in_no_log(url):
    """Not even with a fault in the middle of a document."""

    async def run():
        async with editing(process, url=url) as editor:
            editor.open("A secret text")
            await editor.items(0, 13)
            editor.client.protocol.notify("textDocument/didChange", {"secret": "A secret text"})
            await editor.items(0, 13)
            assert not any("secret" in line for line in [*editor.logged, *editor.shown])
            stderr = editor.client._server.stderr
        assert b"secret" not in await stderr.read()

    asyncio.run(run())
