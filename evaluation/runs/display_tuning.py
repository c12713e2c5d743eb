"""`superdraft lab tune --display`: the least probability at which suggestions pay, by prompts or by recorded events."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from superdraft.client.wire import DraftsOptions
from superdraft.evaluation.cases.prompts import Prompt, read_prompts, read_rows
from superdraft.evaluation.decoders.peers import SUPERDRAFT, parse_peer, served_contender
from superdraft.evaluation.measures.looks import Look, Minimum, best_of, effect_of, keys_saved
from superdraft.evaluation.options import progress_of
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.reports.report import write_json
from superdraft.evaluation.reports.tables import format_interval, markdown_table
from superdraft.evaluation.runs.quality import QualityRun
from superdraft.server.errors import CommandError

MINIMA = tuple(step / 20 for step in range(17))  # 0, 0.05, ..., 0.8
HEAD = ("shown from", "places with a draft", "of these used", "keys saved per place", "less looks")
ALL = "all"
Looks = Mapping[str, Sequence[Sequence[Look]]]
"""The drafts at each place, best first, by the name of a group of places; `ALL` has all of them."""


def tune_display(
    files: Sequence[Path],
    limit: int | None,
    peers: Sequence[str],
    events: Path | None,
    asked: tuple[int, int],
    look_cost: float,
    api_key: str | None,
    output: Path,
) -> None:
    """Find the least probability at which suggestions pay.

    Args:
        files: of prompts, unless there are events.
        limit: maximum number of prompts.
        peers: the running server, as `superdraft=URL`.
        events: file that the server wrote (`--feedback-file`).
        asked: number of drafts, and new tokens per draft.
        look_cost: keys that a look at a draft costs.
        api_key: for the server.
        output: folder for the results.

    Raises:
        CommandError: there is nothing to measure, or the server does not answer.
    """
    if events is not None:
        looks = looks_of_events(events)
    elif files and len(peers) == 1:
        prompts = read_prompts(files, limit)
        looks = _looks_of_groups(prompts, _records(prompts, peers[0], asked, api_key, output))
    else:
        raise CommandError("--display needs --events FILE, or --prompts FILE and one --peer superdraft=URL.")
    _report(output, looks, look_cost)


def _records(
    prompts: Sequence[Prompt], peer: str, asked: tuple[int, int], api_key: str | None, output: Path
) -> list[PromptRecord]:
    """The drafts that the server would show if it withheld none."""
    shows_all: DraftsOptions = {"trigger": "automatic", "min_probability_shown": 0.0}
    server = parse_peer(peer, (SUPERDRAFT,))
    with (
        served_contender(server, api_key, *asked, shows_all) as contender,
        progress_of([contender.name], len(prompts)) as advance,
    ):
        return QualityRun([contender], output / "records").run(prompts, advance)[contender.name]


def _looks_of_groups(prompts: Sequence[Prompt], records: Sequence[PromptRecord]) -> Looks:
    """The looks at all prompts, after words, inside words, and by domain."""
    groups: defaultdict[str, list[list[Look]]] = defaultdict(list)
    for prompt, record in zip(prompts, records, strict=True):
        looks = [Look(math.exp(one.score), keys_saved(one.text, prompt.continuation)) for one in record.drafts]
        for name in (ALL, "inside words" if prompt.is_mid_word else "after words", prompt.domain):
            groups[name].append(looks)
    return groups


def looks_of_events(path: Path) -> Looks:
    """The looks of a server's feedback file: a place is a draft that was shown, and accepted if an event says so.

    Events of drafts without a probability are left out. How much of a draft was accepted is not recorded: it counts
    whole.

    Raises:
        CommandError: the file cannot be read, or has no shown draft.
    """

    def parse(_path: Path, _number: int, row: dict[str, Any]) -> tuple[tuple[str, int], dict[str, Any]]:
        return (str(row["completion_id"]), int(row["index"])), row

    shown: dict[tuple[str, int], Look] = {}
    for key, row in read_rows([path], parse, None):
        probability, is_accepted = row["probability"], row["event"] == "accepted"
        if probability is not None and (is_accepted or key not in shown):
            shown[key] = Look(float(probability), max(0, int(row["num_characters"]) - 1) if is_accepted else 0)
    if not shown:
        raise CommandError(f"{path} has no shown draft with a probability.")
    return {ALL: [[look] for look in shown.values()]}


def _report(folder: Path, looks: Looks, look_cost: float) -> None:
    """Write display.json and display.md, and print the choice."""
    effects = {name: [effect_of(minimum, places, look_cost) for minimum in MINIMA] for name, places in looks.items()}
    choice = best_of(effects[ALL])
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "look_cost": look_cost,
        "choice": choice.probability,
        "num_places": {name: len(places) for name, places in looks.items()},
        "effects": {name: [asdict(one) for one in found] for name, found in effects.items()},
    }
    write_json(folder / "display.json", document)
    blocks = [f"# Display\n\nA look costs {look_cost:g} keys. Best for all places: {choice.probability:g}."]
    for name, places in looks.items():
        rows = [_row(one) for one in effects[name]]
        title = f"## {name.capitalize()}: {len(places)} places, best {best_of(effects[name]).probability:g}"
        blocks += [title, markdown_table(HEAD, rows)]
    (folder / "display.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    console, table = Console(), Table(*HEAD)
    for one in effects[ALL]:
        table.add_row(*_row(one), style="bold" if one == choice else "")
    console.print(table)
    console.print(f"Choice: superdraft serve --min-probability-shown {choice.probability:g}")


def _row(one: Minimum) -> list[str]:
    return [f"{one.probability:g}", *map(format_interval, (one.shown, one.precision, one.saved, one.net))]
