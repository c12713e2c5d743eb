"""`superdraft eval completion`: drafts where users ask for them, behind whole words and inside words."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from superdraft.benchmarks.machine import describe_machine
from superdraft.evaluation.cases.prompts import Prompt, first_words, read_prompts
from superdraft.evaluation.cases.word_list import WordList, known_words
from superdraft.evaluation.decoders.decoder_spec import DecoderSpec
from superdraft.evaluation.decoders.decoders import Contender
from superdraft.evaluation.decoders.peers import Peer, served_contender
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.reports import plots
from superdraft.evaluation.reports.figures import collect, intervals
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.reports.report import DecoderResult, markdown, results_document, summary_table, write_json
from superdraft.evaluation.runs.commands import check_names, progress_of
from superdraft.evaluation.runs.quality import QualityRun, Typing
from superdraft.server.errors import CommandError

NUM_SHOWN = (1, 3)
"""The k of saved@k: one draft in the text, as editors show it, and a list of three."""

PLACES = ("word ends", "inside words")
COLUMNS = (
    "forward_rows",
    "request_ms",
    "exact_match_any/1",
    "words_right",
    "keystroke_savings",
    "saved_at/1",
    "saved_at/3",
    "acceptance_rate_at/1",
    "acceptance_rate_at/3",
    "saved_at_in_part/1",
    "saved_at_in_part/3",
    "acceptance_rate_at_in_part/1",
    "acceptance_rate_at_in_part/3",
    "broken_joints/first",
    "broken_joints/drafts",
    "broken_joints/any",
)
FIRST_WORDS_COLUMNS = ("forward_rows", "request_ms", "exact_match_first/1", "exact_match_any/1", "words_right")
"""Behind the first words of texts, where nothing is typed."""


@dataclass(frozen=True, slots=True)
class CompletionJob:
    """The command.

    Attributes:
        files: of prompts.
        limit: at most so many.
        models: the language models.
        decoders: what is compared on this machine.
        peers: running servers, asked for k drafts of so many tokens by default requests.
        api_key: of the peers.
        num_drafts: k of the requests to peers.
        max_tokens: of each of their drafts.
        words: file of known words; None: the vocabulary's.
        typed_words: words of each reference that are typed; None: all.
        first_words: prompts are so many first words of the texts instead, and nothing is typed; none: as they are.
        seed: of the sampling decoders.
        output: folder of the results.
    """

    files: tuple[Path, ...]
    limit: int | None
    models: ModelChoice
    decoders: tuple[DecoderSpec, ...]
    peers: tuple[Peer, ...]
    api_key: str | None
    num_drafts: int
    max_tokens: int
    words: Path | None
    typed_words: int | None
    first_words: tuple[int, ...]
    seed: int
    output: Path


def run_completion_job(job: CompletionJob, console: Console) -> None:
    """Decode, type and write everything to the job's folder.

    Raises:
        CommandError: a file or an option is wrong, or a peer does not answer.
    """
    names = [*(spec.name for spec in job.decoders), *(peer.name for peer in job.peers)]
    check_names(names)
    asked = _asked(job)
    prompts = [prompt for _, prompt in asked]
    is_typed = not job.first_words
    words = known_words(prompts, job.words, job.models.model) if is_typed else None
    typing = Typing(is_typed, NUM_SHOWN if is_typed else (), job.typed_words)
    with ExitStack() as stack:
        wanted = (job.api_key, job.num_drafts, job.max_tokens)
        peers = [stack.enter_context(served_contender(peer, *wanted)) for peer in job.peers]
        contenders, steps = _contenders(job, prompts, peers)
        run = QualityRun(contenders, job.output / "records", typing=typing)
        advance = stack.enter_context(progress_of(names, len(prompts), console))
        records = run.run(prompts, advance)
    places = [after_words(count) for count in job.first_words] or PLACES
    indices = {place: [i for i, (own, _) in enumerate(asked) if own == place] for place in places}
    results = {
        place: [_result(one, prompts, records[one.name], own, steps[one.name], words) for one in contenders]
        for place, own in indices.items()
        if own
    }
    _report(job, results, words, console)


def _asked(job: CompletionJob) -> list[tuple[str, Prompt]]:
    """The prompts, and where each of them ends.

    Raises:
        CommandError: there are none, or no text is longer than the first words that are asked for.
    """
    prompts = read_prompts(job.files, job.limit)
    if not prompts:
        raise CommandError("The files hold no prompts.")
    if not job.first_words:
        return [(place_of(prompt), prompt) for prompt in prompts]
    cut = [(after_words(count), prompt) for count in job.first_words for prompt in first_words(prompts, count)]
    if not cut:
        raise CommandError(f"--first-words {min(job.first_words)}: no text has more words than that.")
    return cut


def after_words(count: int) -> str:
    """The place behind a text's first words."""
    return f"after {count} word{'s' if count > 1 else ''}"


def place_of(prompt: Prompt) -> str:
    """Where the prompt was cut."""
    return PLACES[prompt.is_mid_word]


def _contenders(
    job: CompletionJob, prompts: Sequence[Prompt], peers: Sequence[Contender]
) -> tuple[list[Contender], dict[str, int]]:
    """Whoever is compared, and the decode steps of each one's whole drafts."""
    contenders: list[Contender] = []
    steps = {peer.name: job.max_tokens - 1 for peer in job.peers}
    if job.decoders:
        texts = [prompt.text + prompt.continuation for prompt in prompts]
        domains = list(dict.fromkeys(prompt.domain for prompt in prompts))
        workbench = Workbench(job.models, texts, job.decoders, seed=job.seed, domains=domains)
        contenders += workbench.contenders(job.decoders)
        steps |= {spec.name: workbench.params(spec).max_tokens - 1 for spec in job.decoders}
    return [*contenders, *peers], steps


def _result(
    contender: Contender,
    prompts: Sequence[Prompt],
    records: Sequence[PromptRecord],
    indices: Sequence[int],
    num_steps: int,
    words: WordList | None,
) -> DecoderResult:
    """What a decoder did on some of the prompts."""
    domains = {}
    for domain in dict.fromkeys(prompts[i].domain for i in indices):
        own = [i for i in indices if prompts[i].domain == domain]
        domains[domain] = collect([records[i] for i in own], [prompts[i] for i in own], num_steps, words)
    return DecoderResult(
        contender.name,
        collect([records[i] for i in indices], [prompts[i] for i in indices], num_steps, words),
        wall_s=round(sum(records[i].wall_s for i in indices), 3),
        settings=contender.settings,
        domains=domains,
    )


def _report(
    job: CompletionJob, results: Mapping[str, Sequence[DecoderResult]], words: WordList | None, console: Console
) -> None:
    """results.json, the tables, the plots, and the figures on the terminal."""
    columns = FIRST_WORDS_COLUMNS if job.first_words else COLUMNS
    about: dict[str, Any] = {
        "command": "completion",
        "files": [file.name for file in job.files],
        "typed_words": job.typed_words,
        "first_words": job.first_words,
        "known_words": None if words is None else len(words),
        "machine": describe_machine(),
    }
    places = {place: results_document("completion", own, {}) for place, own in results.items()}
    write_json(job.output / "results.json", {**about, "places": places})
    tables = [markdown(f"Completion: {place}", own, columns) for place, own in results.items()]
    (job.output / "results.md").write_text("\n".join(tables), encoding="utf-8")
    for place, own in results.items():
        found = {result.name: intervals(result.figures) for result in own}
        plots.bars(job.output / f"completion_{place.replace(' ', '_')}.png", found, columns)
        console.print(f"{place}: {own[0].num_prompts} prompts")
        console.print(summary_table(own, columns))
    console.print(f"{job.output / 'results.md'} has the confidence bounds, differences and domains.")
