"""`superdraft lab eval lines`: what a server shows inside a line, with words missing there and with nothing missing."""

import random
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from superdraft.client.wire import DraftsOptions
from superdraft.evaluation import options
from superdraft.evaluation.cases.prompts import Prompt, read_prompts
from superdraft.evaluation.decoders.peers import SUPERDRAFT, parse_peer, served_contender
from superdraft.evaluation.reports.figures import Figures, means
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.reports.report import write_report
from superdraft.evaluation.runs.quality import measured
from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
from superdraft.server.errors import CommandError

KINDS = ("words missing", "rest of a word missing", "nothing missing")
SHOWN: dict[str, DraftsOptions] = {
    "as decoded": {},
    "invoked": {"trigger": "invoked"},
    "automatic": {"trigger": "automatic"},
}
COLUMNS = ("shown", "first_word_right", "all_right")
NUM_DRAFTS = 3
MAX_MISSING, WORDS_AROUND, MIN_WORD = 4, 8, 4
_WORD = re.compile(r"\S+")


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
    server, key = parse_peer(peer, (SUPERDRAFT,)), read_key(api_key, api_key_file)
    files, folder = options.all_files(prompts, more), output or Path("eval-lines")
    gaps = gaps_of(read_prompts(files, limit), seed)
    groups = {kind: own for kind in KINDS if (own := [gap for gap in gaps if gap.domain == kind])}
    if not groups:
        least = 2 * WORDS_AROUND + MAX_MISSING
        raise CommandError(f"No prompt and its reference are one line of at least {least} words, as gaps need.")
    with ExitStack() as stack:
        contenders = [
            replace(stack.enter_context(served_contender(server, key, NUM_DRAFTS, max_tokens, fields)), name=name)
            for name, fields in SHOWN.items()
        ]
        results = measured(contenders, groups, folder / "records", figures=line_figures)
    write_report(folder, "lines", results, COLUMNS, {"files": [file.name for file in files], "seed": seed}, Console())


def gaps_of(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """One gap of each kind, which is its domain, in each text that has enough words; places depend on the seed."""
    rng = random.Random(seed)  # noqa: S311 (no secret)
    gaps = []
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
            name, after = f"{prompt.id} {kind}", text[end:] + "\n"
            gaps.append(Prompt(name, kind, text[:start], text[start:end], is_mid_word=True, suffix=after))
    return gaps


def line_figures(records: Sequence[PromptRecord], gaps: Sequence[Prompt], _: int) -> Figures:
    """Whether there is a first draft in each gap, its first word is right, and it is all that is missing."""
    rows = []
    for record, gap in zip(records, gaps, strict=True):
        draft, missing = next(iter(record.texts), ""), gap.reference.split()
        words, joins = draft.split(), draft[:1].isspace() == gap.reference[:1].isspace()
        is_first_right = bool(words and missing and joins and words[0] == missing[0])
        found = (bool(words), is_first_right, bool(words and draft == gap.reference))
        rows.append(dict(zip(COLUMNS, map(float, found), strict=True)))
    return means(rows)
