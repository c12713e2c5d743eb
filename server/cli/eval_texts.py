"""`superdraft eval texts`: drafts of everyday texts, to be read."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
from superdraft.server.cli.eval_options import Device, Dtype, Model, Ngram, Seed, decoders_beside


def texts(
    file: Annotated[
        Path | None,
        typer.Option("--texts", help="JSON lines with kind, place and text.  [default: 100 everyday texts]"),
    ] = None,
    decoder: Annotated[
        list[str] | None,
        typer.Option("--decoder", help="As in eval quality, or none, for peers alone.  [default: served]"),
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option("--peer", help="A running server beside them, as NAME=URL. Repeatable.")
    ] = None,
    seed: Seed = 0,
    ngram: Ngram = "auto",
    model: Model = "smollm2-135m",
    dtype: Dtype = "auto",
    device: Device = "auto",
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The Markdown file.  [default: standard output]")
    ] = None,
) -> None:
    """Show three drafts of each of many texts, decoders side by side, as Markdown tables to be read."""
    from superdraft.evaluation.decoders.decoder_spec import parse_decoders
    from superdraft.evaluation.decoders.peers import parse_named_peer
    from superdraft.evaluation.decoders.workbench import ModelChoice
    from superdraft.evaluation.runs.texts import EVERYDAY, MAX_TOKENS, NUM_DRAFTS, TextsJob, run_texts_job

    shared = {"num_drafts": [NUM_DRAFTS], "max_tokens": [MAX_TOKENS]}
    names = decoders_beside(decoder, peer)
    job = TextsJob(
        file=file or EVERYDAY,
        models=ModelChoice(model, dtype, device),
        decoders=tuple(spec for text in names for spec in parse_decoders(text, ngram, shared)),
        peers=tuple(parse_named_peer(text) for text in peer or ()),
        api_key=read_key(api_key, api_key_file),
        seed=seed,
        output=output,
    )
    run_texts_job(job, Console())
