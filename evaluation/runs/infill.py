"""`superdraft eval infill`: drafts for gaps in source code, as the server's `/infill` answers them."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console

from superdraft.benchmarks.machine import describe_machine
from superdraft.evaluation.cases.infill_cases import InfillCase, chosen_cases, write_cases
from superdraft.evaluation.decoders.decoder_spec import DecoderSpec
from superdraft.evaluation.decoders.infill_requests import InfillDecoder
from superdraft.evaluation.decoders.infill_server import Variation, served_here
from superdraft.evaluation.decoders.peers import SUPERDRAFT, TIMEOUT_S, Peer, served_model
from superdraft.evaluation.decoders.workbench import ModelChoice
from superdraft.evaluation.measures import infill_metrics as metrics
from superdraft.evaluation.measures.bootstrap import as_ratios
from superdraft.evaluation.reports import plots
from superdraft.evaluation.reports.figures import Figures, forward_rows, intervals
from superdraft.evaluation.reports.records import PromptRecord, RecordFile, digest
from superdraft.evaluation.reports.report import DecoderResult, markdown, results_document, summary_table, write_json
from superdraft.evaluation.runs.commands import check_names, progress_of
from superdraft.evaluation.runs.quality import new_record
from superdraft.server.errors import CommandError

COLUMNS = (
    "forward_rows",
    "request_ms",
    "exact_line/first",
    "exact_line/any",
    "first_word/first",
    "first_word/any",
    "first_character/first",
    "first_character/any",
    "keystroke_savings",
    "num_drafts",
)
_OPTIONS = ("num_drafts", "max_tokens", "layout", "token_healing")


@dataclass(frozen=True, slots=True)
class InfillJob:
    """The command.

    Attributes:
        file: of cases; None: they are made from source code.
        source: folder of source code; None: the cases are in the file.
        kind: of the cases from source code.
        limit: at most so many cases; None: all of the file.
        seed: of the cases from source code.
        window: lines kept before and after the cursor's; None: all.
        models: the language model.
        decoders: what is compared on this machine.
        peers: running servers.
        api_key: of the peers.
        num_drafts: k, asked of Superdraft peers.
        max_tokens: of each draft, asked of peers; None: this server's limit for editors.
        output: folder of the results.
    """

    file: Path | None
    source: Path | None
    kind: str
    limit: int | None
    seed: int
    window: tuple[int, int] | None
    models: ModelChoice
    decoders: tuple[DecoderSpec, ...]
    peers: tuple[Peer, ...]
    api_key: str | None
    num_drafts: int
    max_tokens: int | None
    output: Path


@dataclass(frozen=True, slots=True)
class _Entrant:
    """One row of the report: who is asked, and all that the drafts depend on."""

    name: str
    decoder: InfillDecoder
    settings: dict[str, Any]
    num_steps: int


def run_infill_job(job: InfillJob, console: Console) -> None:
    """Ask for the drafts of all cases, one request after another, and write everything to the job's folder.

    Raises:
        CommandError: a file or an option is wrong, or a peer does not answer.
    """
    check_names([*(spec.name for spec in job.decoders), *(peer.name for peer in job.peers)])
    cases = chosen_cases(job.file, job.source, job.kind, job.limit, job.seed, job.window)
    max_tokens = job.max_tokens or job.models.server_settings().editor_max_tokens
    with ExitStack() as stack:
        entrants = [_entrant_of_peer(peer, job, max_tokens, stack) for peer in job.peers]
        if job.decoders:
            entrants = [*_entrants_here(job, max_tokens, stack), *entrants]
        advance = stack.enter_context(progress_of([one.name for one in entrants], len(cases), console))
        results = []
        for entrant in entrants:
            records = _records(entrant, cases, job.output / "records", lambda name=entrant.name: advance(name, 1))
            results.append(_result(entrant, cases, records))
    _report(job, results, cases, console)


def _entrants_here(job: InfillJob, max_tokens: int, stack: ExitStack) -> list[_Entrant]:
    """The decoders of this machine: one server, asked in different ways."""
    options = {spec.name: _checked_options(spec) for spec in job.decoders}
    url, engine = stack.enter_context(served_here(job.models))
    http = stack.enter_context(httpx.Client(base_url=url, timeout=TIMEOUT_S))
    entrants = []
    for name, asked in options.items():
        variation = Variation(asked.get("layout"), asked.get("token_healing"))
        engine.check(variation)
        k = asked.get("num_drafts", job.num_drafts)
        n = min(asked.get("max_tokens", max_tokens), engine.max_tokens)
        decoder = InfillDecoder(http, SUPERDRAFT, k, n, engine, variation)
        settings = {
            **asdict(job.models),
            **asdict(variation),
            "defaults": engine.defaults,
            "num_drafts": k,
            "max_tokens": n,
        }
        entrants.append(_Entrant(name, decoder, settings, n - 1))
    return entrants


def _checked_options(spec: DecoderSpec) -> dict[str, Any]:
    """The options of a decoder of gaps.

    Raises:
        CommandError: it is not the served one, or has an option that a request for a gap has not.
    """
    options = dict(spec.options)
    unknown = sorted(set(options) - set(_OPTIONS))
    if spec.kind != "served" or unknown:
        what = repr(unknown[0]) if unknown else repr(spec.kind)
        raise CommandError(
            f"decoder {spec.name!r}: gaps are filled by the decoder served, with the options k, n, layout and healing; "
            f"got {what}."
        )
    return options


def _entrant_of_peer(peer: Peer, job: InfillJob, max_tokens: int, stack: ExitStack) -> _Entrant:
    headers = {} if job.api_key is None else {"authorization": f"Bearer {job.api_key}"}
    http = stack.enter_context(httpx.Client(base_url=peer.url, timeout=TIMEOUT_S, headers=headers))
    k = job.num_drafts if peer.kind == SUPERDRAFT else 1
    settings = {"peer": peer.kind, "url": peer.url, "model": served_model(peer, http)}
    decoder = InfillDecoder(http, peer.kind, k, max_tokens)
    return _Entrant(peer.name, decoder, {**settings, "num_drafts": k, "max_tokens": max_tokens}, max_tokens - 1)


def _records(entrant: _Entrant, cases: Sequence[InfillCase], folder: Path, done: Any) -> list[PromptRecord]:
    """A record of each case: the kept one, or a new one."""
    file = RecordFile(folder, entrant.name, entrant.settings)
    shas = [digest("\0".join((case.prefix, case.suffix, case.reference))) for case in cases]
    kept = [file.get(case.id, sha) for case, sha in zip(cases, shas, strict=True)]
    if None in kept:
        entrant.decoder.warm_up()
    records = []
    for case, sha, found in zip(cases, shas, kept, strict=True):
        record = found
        if record is None:
            record = new_record(case.id, sha, entrant.decoder.decode(case))
            file.add([record])
        records.append(record)
        done()
    return records


def _result(entrant: _Entrant, cases: Sequence[InfillCase], records: Sequence[PromptRecord]) -> DecoderResult:
    kinds = dict.fromkeys(case.kind for case in cases)
    pairs = list(zip(cases, records, strict=True))
    by_kind = {kind: [pair for pair in pairs if pair[0].kind == kind] for kind in kinds}
    return DecoderResult(
        entrant.name,
        infill_figures(cases, records, entrant.num_steps),
        wall_s=round(sum(record.wall_s for record in records), 3),
        settings=entrant.settings,
        domains={
            kind: infill_figures([case for case, _ in own], [record for _, record in own], entrant.num_steps)
            for kind, own in by_kind.items()
        },
    )


def infill_figures(cases: Sequence[InfillCase], records: Sequence[PromptRecord], num_steps: int) -> Figures:
    """All figures of one decoder, one row per case.

    Args:
        cases: what was asked.
        records: the answers.
        num_steps: decode steps of a draft that nothing cuts short.
    """
    rows: list[dict[str, float]] = []
    for case, record in zip(cases, records, strict=True):
        row = {
            "forward_rows": forward_rows(record, num_steps),
            "request_ms": 1000 * record.wall_s,
            "num_drafts": float(len(record.drafts)),
        }
        for name, is_right in _CHECKS.items():
            right = [is_right(text, case.reference) for text in record.texts]
            row |= {f"{name}/first": float(any(right[:1])), f"{name}/any": float(any(right))}
        rows.append(row)
    figures = {name: as_ratios(np.array([row[name] for row in rows])) for name in rows[0]}
    saved = [
        [metrics.keys_saved(record.texts, case.reference), len(case.reference)]
        for case, record in zip(cases, records, strict=True)
    ]
    return {**figures, "keystroke_savings": np.array(saved, dtype=np.float64)}


_CHECKS = {
    "exact_line": metrics.is_exact_line,
    "first_word": metrics.is_first_word_right,
    "first_character": metrics.is_first_character_right,
}


def _report(job: InfillJob, results: Sequence[DecoderResult], cases: Sequence[InfillCase], console: Console) -> None:
    about = {
        "cases": job.file.name if job.file is not None else {"kind": job.kind, "seed": job.seed},
        "context_lines": job.window,
        "machine": describe_machine(),
    }
    write_json(job.output / "results.json", results_document("infill", results, about))
    write_cases(job.output / "cases.jsonl", cases)
    (job.output / "results.md").write_text(markdown("Infill", results, COLUMNS), encoding="utf-8")
    plots.bars(job.output / "infill.png", {one.name: intervals(one.figures) for one in results}, COLUMNS)
    console.print(summary_table(results, COLUMNS))
    console.print(f"{job.output / 'results.md'} has the confidence bounds and differences.")
