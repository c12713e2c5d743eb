"""`superdraft tune`: find alpha, tau and m for a model and an n-gram model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from superdraft.server.cli.eval_options import Device, Dtype, Files, Limit, Model, MoreFiles
from superdraft.server.cli.evaluate import all_files
from superdraft.server.errors import CommandError

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def tune(
    prompts: Files = None,
    more: MoreFiles = None,
    ngram: Annotated[str, typer.Option("--ngram", help="auto, or the name or path of an n-gram model.")] = "auto",
    num_drafts: Annotated[int, typer.Option("--num-drafts", "-k", min=1, help="Drafts of a prompt.")] = 3,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=2, help="New tokens of each draft.")] = 10,
    alpha: Annotated[str, typer.Option(help="Values to try beside 0.")] = "0.1,0.2,0.3,0.4,0.5,0.6,0.7",
    tau: Annotated[str, typer.Option(help="Values to try.")] = "0.06,0.1,0.2,0.3,0.5,0.8,1.2",
    candidates_per_draft: Annotated[
        str,
        typer.Option("--candidates-per-draft", "-m", help="Values of m.  [default: k, k squared, 4 k squared]"),
    ] = "",
    objective: Annotated[
        str, typer.Option(help="What to raise: words_right, keystroke_savings or exact_match_any/1.")
    ] = "words_right",
    max_perplexity: Annotated[
        float, typer.Option(min=1, help="Mean perplexity may be so many times the lowest of any setting.")
    ] = 1.25,
    first_prompts: Annotated[int, typer.Option(min=1, help="Prompts of the first round.")] = 60,
    limit: Limit = None,
    model: Model = "smollm2-135m",
    dtype: Dtype = "auto",
    device: Device = "auto",
    write: Annotated[bool, typer.Option("--write", help="Put the choice into the n-gram model's manifest.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = Path("tuning"),
) -> None:
    """Find the best settings on some prompts; an interrupted search goes on where it stopped."""
    from superdraft.evaluation.decoders.workbench import ModelChoice
    from superdraft.evaluation.runs.tuning import OBJECTIVES, TuningJob, run_tuning_job

    if objective not in OBJECTIVES:
        raise CommandError(f"--objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}.")
    candidates = candidates_per_draft or f"{num_drafts},{num_drafts**2},{4 * num_drafts**2}"
    job = TuningJob(
        files=all_files(prompts, more),
        limit=limit,
        models=ModelChoice(model, dtype, device),
        ngram=ngram,
        num_drafts=num_drafts,
        max_tokens=max_tokens,
        alphas=_numbers("--alpha", alpha),
        taus=_numbers("--tau", tau),
        candidates=tuple(int(value) for value in _numbers("--candidates-per-draft", candidates)),
        objective=objective,
        max_perplexity=max_perplexity,
        first_prompts=first_prompts,
        writes=write,
        output=output,
    )
    run_tuning_job(job, Console())


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise CommandError(f"{flag} must be numbers with commas between them, got {text!r}.") from None
