"""`superdraft lab eval infill`: drafts for gaps in source code, as served by `/infill`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.console import Console

from superdraft.decoding.loading.store import DEFAULT_MODEL
from superdraft.evaluation import options
from superdraft.evaluation.cases.infill_cases import InfillCase, chosen_cases, parse_window, write_cases
from superdraft.evaluation.decoders.decoder_spec import DecoderSpec
from superdraft.evaluation.decoders.infill_requests import InfillDecoder
from superdraft.evaluation.decoders.infill_server import Variation, served_here
from superdraft.evaluation.decoders.peers import LLAMA_CPP, SUPERDRAFT, TIMEOUT_S, Peer, parse_peer, served_model
from superdraft.evaluation.decoders.workbench import ModelChoice
from superdraft.evaluation.measures import infill_metrics as metrics
from superdraft.evaluation.measures.bootstrap import as_ratios
from superdraft.evaluation.options import decoder_specs, progress_of
from superdraft.evaluation.reports.figures import Figures, forward_rows
from superdraft.evaluation.reports.folder import write_report
from superdraft.evaluation.reports.records import PromptRecord, RecordFile, digest
from superdraft.evaluation.reports.report import DecoderResult, total_wall_s
from superdraft.evaluation.runs.quality import new_record
from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
from superdraft.server.errors import CommandError
from superdraft.server.observe.log_config import configure_logging

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


GapDecoders = Annotated[
    list[str],
    typer.Option(
        "--decoder",
        help="Decoder: served or none (only peers), optionally with a name and the options k, n, layout and "
        "healing: 'unhealed: served healing=off layout=line_in_prefix'. Repeatable.",
    ),
]


@dataclass(frozen=True, slots=True)
class _Entrant:
    """One row of the report: a decoder, and everything that its drafts depend on."""

    name: str
    decoder: InfillDecoder
    settings: dict[str, Any]
    num_steps: int


def main(
    cases: options.Cases = None,
    from_source: options.FromSource = None,
    kind: options.Kind = "indent",
    decoder: GapDecoders = options.SERVED,
    peer: options.Peers = None,
    num_drafts: options.NumDrafts = 3,
    max_tokens: options.GapTokens = None,
    limit: options.CaseLimit = None,
    seed: options.CaseSeed = 0,
    context_lines: options.ContextLines = None,
    model: options.Model = DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    output: options.Output = None,
) -> None:
    """Fill gaps in source code as /infill does: whole lines, first words, first characters, keystrokes saved."""
    configure_logging("warning", "console")
    window, peers = parse_window(context_lines), [parse_peer(text, (SUPERDRAFT, LLAMA_CPP)) for text in peer or ()]
    specs = decoder_specs(decoder, "auto", {}, [one.name for one in peers])
    key, models = read_key(api_key, api_key_file), ModelChoice(model, dtype, device)
    folder, console = output or Path("eval-infill"), Console()
    chosen = chosen_cases(cases, from_source, kind, limit, seed, window)
    asked = {"num_drafts": num_drafts, "max_tokens": max_tokens or models.server_settings().editor_max_tokens}
    with ExitStack() as stack:
        entrants = [_entrant_of_peer(one, key, asked, stack) for one in peers]
        if specs:
            entrants = [*_entrants_here(specs, models, asked, stack), *entrants]
        advance = stack.enter_context(progress_of([one.name for one in entrants], len(chosen), console))
        results = []
        for entrant in entrants:
            records = _records(entrant, chosen, folder / "records", partial(advance, entrant.name, 1))
            results.append(_result(entrant, chosen, records))
    about = {"cases": {"kind": kind, "seed": seed} if cases is None else cases.name, "context_lines": window}
    write_cases(folder / "cases.jsonl", chosen)
    write_report(folder, "infill", "Infill", results, COLUMNS, about, console)
    console.print(f"{folder / 'results.md'} has the confidence bounds and differences.")


def _entrants_here(
    specs: Sequence[DecoderSpec], models: ModelChoice, asked: Mapping[str, int], stack: ExitStack
) -> list[_Entrant]:
    """The decoders of this machine: one server, asked in different ways."""
    by_name = {spec.name: _checked_options(spec) for spec in specs}
    url, engine = stack.enter_context(served_here(models))
    http = stack.enter_context(httpx.Client(base_url=url, timeout=TIMEOUT_S))
    entrants = []
    for name, own in by_name.items():
        variation = Variation(own.get("layout"), own.get("token_healing"))
        engine.check(variation)
        k = own.get("num_drafts", asked["num_drafts"])
        n = min(own.get("max_tokens", asked["max_tokens"]), engine.max_tokens)
        decoder = InfillDecoder(http, SUPERDRAFT, k, n, engine, variation)
        settings = {
            **asdict(models),
            **asdict(variation),
            "defaults": engine.defaults,
            "num_drafts": k,
            "max_tokens": n,
        }
        entrants.append(_Entrant(name, decoder, settings, n - 1))
    return entrants


def _checked_options(spec: DecoderSpec) -> dict[str, Any]:
    """The options of a decoder for gaps.

    Raises:
        CommandError: the decoder is not "served", or has an option that requests for gaps lack.
    """
    own = dict(spec.options)
    unknown = sorted(set(own) - set(_OPTIONS))
    if spec.kind != "served" or unknown:
        what = repr(unknown[0]) if unknown else repr(spec.kind)
        raise CommandError(
            f"decoder {spec.name!r}: gaps are filled by the decoder served, with the options k, n, layout and healing; "
            f"got {what}."
        )
    return own


def _entrant_of_peer(peer: Peer, api_key: str | None, asked: Mapping[str, int], stack: ExitStack) -> _Entrant:
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    http = stack.enter_context(httpx.Client(base_url=peer.url, timeout=TIMEOUT_S, headers=headers))
    k, n = asked["num_drafts"] if peer.kind == SUPERDRAFT else 1, asked["max_tokens"]
    settings = {"peer": peer.kind, "url": peer.url, "model": served_model(peer, http), "num_drafts": k, "max_tokens": n}
    return _Entrant(peer.name, InfillDecoder(http, peer.kind, k, n), settings, n - 1)


def _records(
    entrant: _Entrant, cases: Sequence[InfillCase], folder: Path, done: Callable[[], None]
) -> list[PromptRecord]:
    """A record per case: the stored one, or a new one."""
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
        wall_s=total_wall_s(records),
        settings=entrant.settings,
        domains={
            kind: infill_figures([case for case, _ in own], [record for _, record in own], entrant.num_steps)
            for kind, own in by_kind.items()
        },
    )


def infill_figures(cases: Sequence[InfillCase], records: Sequence[PromptRecord], num_steps: int) -> Figures:
    """All figures of one decoder, one row per case.

    Args:
        cases: the cases.
        records: their records, in the same order.
        num_steps: decode steps of a draft that is not cut short.
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
