"""`superdraft lab eval lines`: what a server shows inside a line, with words missing there and with nothing missing."""

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from superdraft.client import Superdraft
from superdraft.client.errors import ClientError
from superdraft.client.wire import DraftsOptions
from superdraft.evaluation import options
from superdraft.evaluation.cases.prompts import Prompt, read_prompts
from superdraft.evaluation.decoders.peers import SUPERDRAFT, TIMEOUT_S, parse_peer
from superdraft.evaluation.options import all_files, progress_of
from superdraft.evaluation.reports.report import write_json
from superdraft.evaluation.reports.tables import markdown_table
from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
from superdraft.server.errors import CommandError

KINDS = ("words missing", "rest of a word missing", "nothing missing")
SHOWN: dict[str, DraftsOptions] = {
    "as decoded": {},
    "invoked": {"trigger": "invoked"},
    "automatic": {"trigger": "automatic"},
}
HEAD = ("missing", "drafts", "places", "with a draft", "first word right", "all that is missing")
MAX_MISSING, WORDS_AROUND, MIN_WORD = 4, 8, 4
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Place:
    """A cursor inside a line. `missing`: the text that was taken out there, perhaps none."""

    kind: str
    before: str
    missing: str
    after: str


@dataclass(slots=True)
class Count:
    """What was shown at the places of one kind."""

    kind: str
    drafts: str
    num_places: int = 0
    num_shown: int = 0
    num_first_right: int = 0
    num_all_right: int = 0


def main(
    prompts: options.Files = None,
    more: options.MoreFiles = None,
    peer: Annotated[str, typer.Option("--peer", help="Running server, as superdraft=URL.")] = "",
    max_tokens: options.MaxTokens = 10,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    output: options.Output = None,
) -> None:
    """Measure drafts inside lines: of each text, one place for each kind of gap."""
    server, key, console = parse_peer(peer, (SUPERDRAFT,)), read_key(api_key, api_key_file), Console()
    places = places_of(read_prompts(all_files(prompts, more), limit), seed)
    counts = {(kind, name): Count(kind, name) for kind in KINDS for name in SHOWN}
    with Superdraft(server.url, key, TIMEOUT_S) as client, progress_of(["lines"], len(places)) as advance:
        for place in places:
            for name, fields in SHOWN.items():
                _add(counts[place.kind, name], place, _first_draft(client, place, max_tokens, fields))
            advance("lines", 1)
    folder = output or Path("eval-lines")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", {"command": "lines", "counts": [asdict(one) for one in counts.values()]})
    table = markdown_table(HEAD, [[str(value) for value in asdict(one).values()] for one in counts.values()])
    (folder / "results.md").write_text(f"# Inside lines\n\n{table}\n", encoding="utf-8")
    console.print(table, soft_wrap=True)


def places_of(prompts: Sequence[Prompt], seed: int) -> list[Place]:
    """One place of each kind in each text that has enough words, in a random order that depends on the seed."""
    rng = random.Random(seed)  # noqa: S311 (no secret)
    places = []
    for prompt in prompts:
        text = prompt.text + prompt.continuation
        words = list(_WORD.finditer(text))
        if prompt.is_mid_word or "\n" in text or len(words) < 2 * WORDS_AROUND + MAX_MISSING:
            continue
        for kind in KINDS:
            at = rng.randrange(WORDS_AROUND, len(words) - WORDS_AROUND)
            word = words[at]
            start, end = word.end(), words[at + rng.randint(1, MAX_MISSING)].end()
            if kind == KINDS[1]:
                if not (word[0].isalpha() and len(word[0]) >= MIN_WORD):
                    continue
                start, end = word.start() + rng.randint(2, len(word[0]) - 1), word.end()
            elif kind == KINDS[2]:
                end = start
            places.append(Place(kind, text[:start], text[start:end], text[end:] + "\n"))
    rng.shuffle(places)
    return places


def _first_draft(client: Superdraft, place: Place, max_tokens: int, fields: DraftsOptions) -> str:
    request: DraftsOptions = {**fields, "suffix": place.after}
    try:
        answer = client.complete(place.before, 3, max_tokens, **request)
    except ClientError as error:
        raise CommandError(f"{client.base_url} did not answer with drafts: {error}") from None
    return answer.drafts[0].text if answer.drafts else ""


def _add(count: Count, place: Place, draft: str) -> None:
    ours, missing = draft.split(), place.missing.split()
    joins = draft[:1].isspace() == place.missing[:1].isspace()
    count.num_places += 1
    count.num_shown += bool(ours)
    count.num_first_right += bool(ours and missing and joins and ours[0] == missing[0])
    count.num_all_right += bool(ours and draft == place.missing)
