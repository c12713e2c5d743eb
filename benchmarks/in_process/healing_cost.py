"""Cost of token healing: the prompt's pass, decode steps and the host's bookkeeping, with healing and without.

One engine, set up as the server's, answers default requests for each prompt with healing and without it, in turns.
*Cold*: nothing of the prompt is cached. *Warm*: the same text without its last character was requested just before.
*Bookkeeping* is the host's time for healing. The choice of the first tokens is part of it; its counterpart without
healing is not subtracted.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from superdraft.benchmarks.in_process.healing import with_healing
from superdraft.benchmarks.in_process.request_cost import BOOKKEEPING, Cost, ask
from superdraft.benchmarks.options import AsJson, Dtype, MaxTokens, Model, NumDraftsEach
from superdraft.benchmarks.summary import make_report, print_report, ratio, spread, tracked
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.loading.store import DEFAULT_MODEL
from superdraft.decoding.params import GenerationParams
from superdraft.evaluation.cases.prompts import read_prompts
from superdraft.evaluation.decoders.decoder_spec import parse_decoders
from superdraft.evaluation.decoders.workbench import ModelChoice
from superdraft.server.errors import CommandError
from superdraft.server.loading import LoadedService, load_service
from superdraft.server.observe.log_config import configure_logging
from superdraft.server.settings import Settings

NUM_DRAFTS = [3, 8]
WORD_END, INSIDE_WORD = PLACES = ("word end", "inside word")
KEPT = ("cold", "warm")
WARM_UP_PROMPTS = 2
MIN_PROMPT_CHARS = 60
MIN_WORD_CHARS = 4


@dataclass(frozen=True, slots=True)
class Place:
    """A prompt and the place where it ends, one of `PLACES`."""

    text: str
    place: str


Pair = tuple[Cost, Cost]
"""The cost of one request with healing and without."""

Variants = tuple[GenerationParams, GenerationParams]
"""The same request with healing and without."""


def main(
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            "--prompts",
            help="JSON lines with prompt, reference and, inside words, typed. Repeatable. If not set, beginnings of "
            "built-in texts.",
        ),
    ] = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    num_drafts: NumDraftsEach = NUM_DRAFTS,
    max_tokens: MaxTokens = 10,
    limit: Annotated[
        int, typer.Option(min=1, help="Maximum number of prompts that end after a word, and inside a word.")
    ] = 40,
    as_json: AsJson = False,
) -> None:
    """Time requests with token healing and without, in turns: the prompt, decode steps, and the host's part."""
    configure_logging("warning", "console")
    places = places_of(prompts or [], limit)
    settings = ModelChoice(model, dtype, "auto").server_settings()
    service = load_service(settings)
    for k in num_drafts:
        for place in places[:WARM_UP_PROMPTS]:
            pair_of(service, params_of(k, max_tokens, service, settings), place.text, is_warm=False, heals_first=True)
    rows = [
        row_of(k, place, kept, pairs)
        for k in num_drafts
        for (place, kept), pairs in measure(service, params_of(k, max_tokens, service, settings), places).items()
    ]
    about = {
        "model": service.model_name,
        "dtype": dtype,
        "max_tokens": max_tokens,
        "prompts": [path.name for path in prompts] if prompts else "built in",
        "prompt_characters_median": statistics.median(len(place.text) for place in places),
    }
    print_report(make_report(__doc__, about, rows=rows), [_table(rows), _bookkeeping_table(rows)], as_json)


def places_of(files: Sequence[Path], limit: int) -> list[Place]:
    """The prompts, at most `limit` per place.

    Raises:
        CommandError: a file is wrong, or there is no prompt of at least two characters.
    """
    if files:
        found = [Place(one.text, PLACES[one.is_mid_word]) for one in read_prompts(files) if len(one.text) > 1]
    else:
        found = built_in_places(limit)
    kept = [one for place in PLACES for one in [own for own in found if own.place == place][:limit]]
    if not kept:
        raise CommandError("The files hold no prompts of two characters or more.")
    return kept


def built_in_places(count: int) -> list[Place]:
    """Beginnings of the built-in texts: `count` that end after a word, and the same without the word's second half."""
    found = []
    per_text = -(-count // len(TEXTS))
    for number in range(per_text):
        for text in TEXTS:
            end = _word_end(text, MIN_PROMPT_CHARS + (len(text) - 2 * MIN_PROMPT_CHARS) * number // per_text)
            start = text.rfind(" ", 0, end) + 1
            found += [Place(text[:end], WORD_END), Place(text[: (start + end + 1) // 2], INSIDE_WORD)]
    return found[: 2 * count]


def _word_end(text: str, start: int) -> int:
    """The end of the first word after `start` that is long enough and has no punctuation."""
    position = text.index(" ", start) + 1
    for word in text[position:].split(" "):
        if word.isalpha() and len(word) >= MIN_WORD_CHARS:
            return position + len(word)
        position += len(word) + 1
    raise ValueError(f"no word of {MIN_WORD_CHARS} letters begins after character {start}")


def params_of(num_drafts: int, max_tokens: int, service: LoadedService, settings: Settings) -> Variants:
    """Parameters of a default request, with healing and without."""
    (spec,) = parse_decoders("served", "auto", {"num_drafts": [num_drafts], "max_tokens": [max_tokens]})
    on, off = (with_healing(spec, heals).params(service.drafting, settings) for heals in (True, False))
    return on, off


def measure(service: LoadedService, params: Variants, places: Sequence[Place]) -> dict[tuple[str, str], list[Pair]]:
    """Answer all prompts, cold and warm, with healing and without in turns; pairs by place and state of the cache."""
    found: dict[tuple[str, str], list[Pair]] = {}
    name = f"k={params[0].num_drafts}"
    for number, place in enumerate(tracked(places, name, transient=True)):
        for kept in KEPT:
            pair = pair_of(service, params, place.text, is_warm=kept == "warm", heals_first=number % 2 == 0)
            found.setdefault((place.place, kept), []).append(pair)
    return found


def pair_of(
    service: LoadedService,
    params: Variants,
    text: str,
    *,
    is_warm: bool,
    heals_first: bool,
) -> Pair:
    """Answer a prompt with healing and without; each time empty the cache and, if warm, request all but its end."""
    costs: dict[bool, Cost] = {}
    for heals in (heals_first, not heals_first):
        own = params[0] if heals else params[1]
        service.engine.forget_prompts()
        if is_warm:
            service.engine.generate(text[:-1], own, service.ngram_models.default_scorer)
        costs[heals] = ask(service.engine, text, own, service.ngram_models.default_scorer)
    return costs[True], costs[False]


def row_of(num_drafts: int, place: str, kept: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Medians and quartiles of the costs of some requests, with healing and without."""
    healed = [pair[0] for pair in pairs]
    total_on, total_off = [one.total_ms for one in healed], [pair[1].total_ms for pair in pairs]
    spent = [sum(one.bookkeeping_ms.values()) for one in healed]
    return {
        "num_drafts": num_drafts,
        "place": place,
        "prompt": kept,
        "requests": len(pairs),
        "on": _figures(healed),
        "off": _figures([pair[1] for pair in pairs]),
        "total_ratio": ratio(total_on, total_off),
        "extra_ms": spread([on - off for on, off in zip(total_on, total_off, strict=True)]),
        "bookkeeping": {
            "ms": spread(spent),
            "share": spread([own / total for own, total in zip(spent, total_on, strict=True)], 4),
            "parts_ms": {
                name: round(statistics.median(one.bookkeeping_ms[name] for one in healed), 3)
                for name in healed[0].bookkeeping_ms
            },
        },
    }


def _figures(costs: Sequence[Cost]) -> dict[str, Any]:
    per_step = [one.decode_ms / one.steps for one in costs if one.steps]
    return {
        "prefill_ms": spread([one.prefill_ms for one in costs]),
        "step_ms": spread(per_step) if per_step else None,
        "steps": spread([one.steps for one in costs], 1),
        "rows": spread([one.rows for one in costs], 1),
        "total_ms": spread([one.total_ms for one in costs]),
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    titles = {
        "prefill_ms": "prompt ms",
        "step_ms": "step ms",
        "steps": "steps",
        "rows": "rows",
        "total_ms": "total ms",
        "total_ratio": "ratio",
    }
    table = Table("k", "place", "prompt", "n", *titles.values(), title="with healing / without, medians")
    for row in rows:
        cells = [" / ".join(_median(row[kind][name]) for kind in ("on", "off")) for name in list(titles)[:-1]]
        first = (str(row[name]) for name in ("num_drafts", "place", "prompt", "requests"))
        table.add_row(*first, *cells, _median(row["total_ratio"]))
    return table


def _median(found: dict[str, float] | None) -> str:
    return "-" if found is None else f"{found['median']:g}"


def _bookkeeping_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("k", "place", "prompt", "bookkeeping ms", "share of total", *(name for _, name in BOOKKEEPING))
    for row in rows:
        found = row["bookkeeping"]
        table.add_row(
            *(str(row[name]) for name in ("num_drafts", "place", "prompt")),
            f"{found['ms']['median']:g}",
            f"{found['share']['median']:.1%}",
            *(f"{found['parts_ms'][name]:g}" for _, name in BOOKKEEPING),
        )
    return table
