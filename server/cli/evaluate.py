"""`superdraft eval`: how good the drafts are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
from superdraft.server.cli.eval_options import (
    Alpha,
    Candidates,
    ContextLines,
    Decoders,
    Device,
    Dtype,
    Evaluator,
    Files,
    Limit,
    MaxTokens,
    Model,
    MoreFiles,
    Ngram,
    NumDrafts,
    Output,
    Peers,
    Prefix,
    QuestionFiles,
    Seed,
    Selection,
    Tau,
    TypedWords,
    decoders_beside,
)
from superdraft.server.cli.eval_texts import texts
from superdraft.server.errors import CommandError

app = typer.Typer(help="Measure how good the drafts are.", no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(texts)

DEFAULT_DECODERS = ("greedy", "served", "nucleus")
DEFAULT_NUM_DRAFTS = {"quality": [3], "diversity": [3], "keystrokes": [1, 3, 5]}
COVERAGE_DECODERS = ("nucleus", "nucleus+superposed")
DRAFTS_OF_A_ROW = 3  # coverage: of each sampled row that Superposed Decoding goes on from

T = TypeVar("T")


@app.command("quality", help="Perplexity, hits, keystrokes saved and distinctness of several decoders' drafts.")
@app.command("keystrokes", help="Keystrokes that drafts save, for several numbers of drafts.")
@app.command("diversity", help="How different the drafts of one prompt are, and whether a draft repeats itself.")
def on_prompts(
    ctx: typer.Context,
    prompts: Files = None,
    more: MoreFiles = None,
    decoder: Decoders = None,
    num_drafts: NumDrafts = None,
    max_tokens: MaxTokens = 10,
    limit: Limit = None,
    seed: Seed = 0,
    selection: Selection = None,
    alpha: Alpha = None,
    tau: Tau = None,
    candidates_per_draft: Candidates = None,
    ngram: Ngram = "auto",
    model: Model = "smollm2-135m",
    dtype: Dtype = "auto",
    device: Device = "auto",
    evaluator: Evaluator = None,
    prefix_words: Prefix = None,
    typed_words: TypedWords = 5,
    output: Output = None,
) -> None:
    """Run one of the commands on prompts: the one that was called."""
    from superdraft.evaluation.decoders.decoder_spec import parse_decoders
    from superdraft.evaluation.decoders.workbench import ModelChoice
    from superdraft.evaluation.runs.commands import PromptJob, run_prompt_job

    command = ctx.info_name or ""
    shared: dict[str, Sequence[Any]] = {
        "num_drafts": num_drafts or DEFAULT_NUM_DRAFTS[command],
        "max_tokens": [max_tokens],
        "selection": _given(selection),
        "alpha": _given(alpha),
        "tau": _given(tau),
        "candidates_per_draft": _given(candidates_per_draft),
    }
    specs = [spec for text in decoder or DEFAULT_DECODERS for spec in parse_decoders(text, ngram, shared)]
    job = PromptJob(
        command=command,
        files=all_files(prompts, more),
        limit=limit,
        prefix_words=tuple(prefix_words or ()),
        models=ModelChoice(model, dtype, device, evaluator),
        decoders=tuple(specs),
        typed_words=typed_words or None,
        seed=seed,
        output=output or Path(f"eval-{command}"),
    )
    run_prompt_job(job, Console())


@app.command()
def completion(
    prompts: Files = None,
    more: MoreFiles = None,
    decoder: Annotated[
        list[str] | None,
        typer.Option("--decoder", help="As in eval quality, or none, for peers alone.  [default: served]"),
    ] = None,
    peer: Peers = None,
    num_drafts: Annotated[int, typer.Option("--num-drafts", "-k", min=1, help="Drafts of a prompt.")] = 3,
    max_tokens: MaxTokens = 10,
    limit: Limit = None,
    seed: Seed = 0,
    words: Annotated[
        Path | None, typer.Option(help="Known words, one per line.  [default: of the model's vocabulary]")
    ] = None,
    ngram: Ngram = "auto",
    model: Model = "smollm2-135m",
    dtype: Dtype = "auto",
    device: Device = "auto",
    typed_words: TypedWords = 5,
    first_words: Annotated[
        str | None,
        typer.Option(
            help="N,...: prompts are the first N words of each text, nothing is typed.  [default: as they are]"
        ),
    ] = None,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    output: Output = None,
) -> None:
    """Measure what is served where users ask: behind words and inside them, broken words included."""
    from superdraft.evaluation.decoders.decoder_spec import parse_decoders
    from superdraft.evaluation.decoders.peers import SUPERDRAFT, parse_peer
    from superdraft.evaluation.decoders.workbench import ModelChoice
    from superdraft.evaluation.runs.completion import CompletionJob, run_completion_job

    shared: dict[str, Sequence[Any]] = {"num_drafts": [num_drafts], "max_tokens": [max_tokens]}
    job = CompletionJob(
        files=all_files(prompts, more),
        limit=limit,
        models=ModelChoice(model, dtype, device),
        decoders=tuple(spec for text in decoders_beside(decoder, peer) for spec in parse_decoders(text, ngram, shared)),
        peers=tuple(parse_peer(text, (SUPERDRAFT,)) for text in peer or ()),
        api_key=read_key(api_key, api_key_file),
        num_drafts=num_drafts,
        max_tokens=max_tokens,
        words=words,
        typed_words=typed_words or None,
        first_words=_word_counts(first_words),
        seed=seed,
        output=output or Path("eval-completion"),
    )
    run_completion_job(job, Console())


@app.command()
def infill(
    cases: Annotated[
        Path | None, typer.Option(help="JSON lines with prefix, suffix and reference, the rest of the line.")
    ] = None,
    from_source: Annotated[Path | None, typer.Option(help="Or a folder of source code to make cases of.")] = None,
    kind: Annotated[
        str, typer.Option(help="Of such cases: indent (a new line), mid (inside a line) or word (inside a word).")
    ] = "indent",
    decoder: Annotated[
        list[str] | None,
        typer.Option(
            "--decoder",
            help="served, or none, for peers alone; repeatable. With a name and the options k, n, layout and healing: "
            "'unhealed: served healing=off layout=line_in_prefix'.  [default: served]",
        ),
    ] = None,
    peer: Peers = None,
    num_drafts: Annotated[int, typer.Option("--num-drafts", "-k", min=1, help="Drafts for a gap.")] = 3,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", min=2, help="Of each draft.  [default: the server's limit]")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many cases.  [default: all, 100 of source]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of cases.")] = 0,
    context_lines: ContextLines = None,
    model: Model = "smollm2-135m",
    dtype: Dtype = "auto",
    device: Device = "auto",
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    output: Output = None,
) -> None:
    """Fill gaps in source code as /infill does: whole lines, first words, first characters, keystrokes saved."""
    from superdraft.evaluation.cases.infill_cases import parse_window
    from superdraft.evaluation.decoders.decoder_spec import parse_decoders
    from superdraft.evaluation.decoders.peers import LLAMA_CPP, SUPERDRAFT, parse_peer
    from superdraft.evaluation.decoders.workbench import ModelChoice
    from superdraft.evaluation.runs.infill import InfillJob, run_infill_job
    from superdraft.server.observe.log_config import configure_logging

    configure_logging("warning", "console")
    job = InfillJob(
        file=cases,
        source=from_source,
        kind=kind,
        limit=limit,
        seed=seed,
        window=None if context_lines is None else parse_window(context_lines),
        models=ModelChoice(model, dtype, device),
        decoders=tuple(spec for text in decoders_beside(decoder, peer) for spec in parse_decoders(text, "auto", {})),
        peers=tuple(parse_peer(text, (SUPERDRAFT, LLAMA_CPP)) for text in peer or ()),
        api_key=read_key(api_key, api_key_file),
        num_drafts=num_drafts,
        max_tokens=max_tokens,
        output=output or Path("eval-infill"),
    )
    run_infill_job(job, Console())


@app.command("qa", help="How often drafts answer questions: P@1, P@2, P@3.")
@app.command("coverage", help="How often one of many drafts answers, and how far scores can be trusted.")
def on_questions(
    ctx: typer.Context,
    prompts: QuestionFiles = None,
    more: MoreFiles = None,
    decoder: Decoders = None,
    num_drafts: Annotated[
        int | None, typer.Option("--num-drafts", "-k", min=1, help="qa: drafts [3]; coverage: sampled rows [100].")
    ] = None,
    max_tokens: MaxTokens = 10,
    limit: Limit = None,
    seed: Seed = 0,
    selection: Selection = None,
    alpha: Annotated[float, typer.Option(help="The n-gram model's weight.")] = 0.0,
    tau: Tau = None,
    candidates_per_draft: Candidates = None,
    ngram: Ngram = "auto",
    model: Model = "smollm2-135m",
    dtype: Dtype = "auto",
    device: Device = "auto",
    output: Output = None,
) -> None:
    """Run one of the commands on questions: the one that was called."""
    from superdraft.evaluation.decoders.decoder_spec import parse_decoders
    from superdraft.evaluation.decoders.workbench import ModelChoice
    from superdraft.evaluation.runs.questions import QuestionJob, run_question_job

    command = ctx.info_name or ""
    is_coverage = command == "coverage"
    shared: dict[str, Sequence[Any]] = {
        "num_drafts": [DRAFTS_OF_A_ROW if is_coverage else num_drafts or 3],
        "num_branches": [num_drafts or 100] if is_coverage else [],
        "max_tokens": [max_tokens],
        "selection": _given(selection),
        "alpha": [alpha],
        "tau": _given(tau),
        "candidates_per_draft": _given(candidates_per_draft),
    }
    names = decoder or (COVERAGE_DECODERS if is_coverage else DEFAULT_DECODERS)
    job = QuestionJob(
        command=command,
        files=all_files(prompts, more),
        limit=limit,
        models=ModelChoice(model, dtype, device),
        decoders=tuple(spec for text in names for spec in parse_decoders(text, ngram, shared)),
        seed=seed,
        output=output or Path(f"eval-{command}"),
    )
    run_question_job(job, Console())


@app.command()
def linearity(
    prompts: Files = None,
    more: MoreFiles = None,
    num_drafts: Annotated[int, typer.Option("--num-drafts", "-k", min=2, help="Superposed drafts.")] = 3,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Superposed steps.")] = 20,
    limit: Limit = None,
    tau: Annotated[float, typer.Option(help="The temperature.")] = 0.06,
    model: Model = "smollm2-135m",
    dtype: Dtype = "float32",
    device: Device = "auto",
    output: Output = None,
) -> None:
    """Compare superposed forwards with the weighted sum of separate ones, step by step."""
    from superdraft.decoding.params import GenerationParams
    from superdraft.evaluation.decoders.workbench import ModelChoice
    from superdraft.evaluation.runs.linearity import LinearityJob, run_linearity_job

    params = GenerationParams(num_drafts=num_drafts, max_tokens=max_tokens, alpha=0.0, tau=tau)
    files, models = all_files(prompts, more), ModelChoice(model, dtype, device)
    run_linearity_job(LinearityJob(files, limit, models, params, output or Path("eval-linearity")), Console())


def all_files(first: list[Path] | None, more: list[Path] | None) -> tuple[Path, ...]:
    """The files of --prompts and those that follow it, as a shell pattern gives them."""
    files = (*(first or ()), *(more or ()))
    if not files:
        raise CommandError("--prompts FILE is missing.")
    return files


def _word_counts(text: str | None) -> tuple[int, ...]:
    """The numbers of --first-words, each once."""
    counts = [] if text is None else [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if min(counts, default=1) < 1:
        raise CommandError(f"--first-words must be numbers of at least 1, as 1,2,3; got {text!r}.")
    return tuple(dict.fromkeys(counts))


def _given(value: T | None) -> list[T]:
    return [] if value is None else [value]
