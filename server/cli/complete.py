"""`superdraft complete`: print drafts for a text, from a server or from a model loaded in this process."""

import asyncio
import json
import sys
from typing import Annotated, Any

import httpx
import typer

from superdraft.client import AsyncSuperdraft, DraftsAnswer, Superdraft
from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
from superdraft.server.errors import CommandError


def complete(
    text: Annotated[str, typer.Argument(help='Text to continue; "-" reads it from standard input.')],
    num_drafts: Annotated[int, typer.Option("--num-drafts", "-k", help="Number of drafts.")] = 3,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="New tokens per draft.")] = 16,
    alpha: Annotated[float | None, typer.Option(help="Weight of the n-gram model, from 0 to 1.")] = None,
    tau: Annotated[float | None, typer.Option(help="Temperature of the language model's scores.")] = None,
    ngram_model: Annotated[
        str | None, typer.Option(help="N-gram model: a name or none; without --url also a folder.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text before which drafts end. Repeatable.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Language model: a name; without --url also a folder, a .gguf file or a hub id.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="URL of a server. If not set, the model is loaded in this process.")
    ] = None,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer of /v1/drafts as JSON.")] = False,
) -> None:
    """Show the best drafts that continue a text."""
    given = {"alpha": alpha, "tau": tau, "stop": stop or None}
    body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    body |= {"prompt": read_prompt(text), "num_drafts": num_drafts, "max_tokens": max_tokens}
    completion: DraftsAnswer
    if url is None:
        completion = _complete_here(body, model, ngram_model)
    else:
        if model is not None:
            body["model"] = model
        if ngram_model is not None:
            body["ngram_model"] = None if ngram_model == "none" else ngram_model
        with Superdraft(url, read_key(api_key, api_key_file)) as client:
            completion = client.complete(**body)
    for warning in completion.warnings:
        sys.stderr.write(f"superdraft: {warning}\n")
    if as_json:
        sys.stdout.write(json.dumps(completion.to_dict()) + "\n")
    else:
        _show(completion)


def read_prompt(text: str) -> str:
    """The prompt: `text`, or for "-" standard input without its last line break.

    Raises:
        CommandError: the prompt is not valid UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if text == "-" else text.encode("utf-8", "surrogateescape")
        prompt = data.decode("utf-8")
    except UnicodeError:
        raise CommandError("the text is not valid UTF-8.") from None
    return prompt.removesuffix("\n") if text == "-" else prompt


def _complete_here(body: dict[str, Any], model: str | None, ngram_model: str | None) -> DraftsAnswer:
    from superdraft.server.cli.in_process import load, running

    app = load({"model": model, "ngram_model": ngram_model})

    async def ask() -> DraftsAnswer:
        async with running(app) as transport, httpx.AsyncClient(transport=transport) as http:
            return await AsyncSuperdraft("http://superdraft", "", http_client=http).complete(**body)

    return asyncio.run(ask())


def _show(completion: DraftsAnswer) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("#", "score", "draft", title=f"{completion.model}, {completion.timings.total_ms:.0f} ms")
    colours = ("bold green", "cyan", "yellow")
    for draft in completion.drafts:
        colour = colours[min(draft.index, len(colours) - 1)]
        table.add_row(str(draft.index + 1), f"{draft.score:.3f}", Text(shown(draft.text), style=colour))
    Console().print(table)


def shown(text: str) -> str:
    """A draft for the terminal: control characters other than line breaks are escaped."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)
