"""Runs of several decoders over prompts: decode, judge the drafts, type the references, and store the records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.decoders.decoders import Ask, Contender, Decoded, Decoder
from superdraft.evaluation.measures.evaluator import Evaluator
from superdraft.evaluation.measures.typing_simulation import TypedText, type_all
from superdraft.evaluation.options import Advance, progress_of
from superdraft.evaluation.reports.figures import collect
from superdraft.evaluation.reports.records import PromptRecord, RecordFile, digest
from superdraft.evaluation.reports.report import DecoderResult, FiguresOf

CHUNK_SIZE = 128


class QualityRun:
    """All decoders over the same prompts. Stored records are not computed again.

    A chunk of prompts goes through all decoders before the next one: the engine keeps the prompts' keys and values from
    one decoder to the next, and a draft that several decoders make is judged once.

    Args:
        contenders: the decoders.
        folder: folder of the records.
        evaluator: computes the drafts' exact log-probabilities; None: they are not needed.
        types: whether references are typed.
        max_words: of each reference that are typed; None: all.
        conditions: further settings that the records depend on.
    """

    def __init__(
        self,
        contenders: Sequence[Contender],
        folder: Path,
        *,
        evaluator: Evaluator | None = None,
        types: bool = False,
        max_words: int | None = None,
        conditions: Mapping[str, Any] | None = None,
    ) -> None:
        self._evaluator = evaluator
        self._types, self._max_words = types, max_words
        self._decoders = {one.name: _Remembering(one.decoder) for one in contenders}
        shared = {**(conditions or {}), "typed_words": max_words}
        self._files = {one.name: RecordFile(folder, one.name, {**one.settings, **shared}) for one in contenders}

    def run(self, prompts: Sequence[Prompt], advance: Advance) -> dict[str, list[PromptRecord]]:
        """The records of each decoder, in the order of the prompts."""
        records: dict[str, list[PromptRecord]] = {name: [] for name in self._decoders}
        for start in range(0, len(prompts), CHUNK_SIZE):
            chunk = prompts[start : start + CHUNK_SIZE]
            for name, done in self._run_chunk(chunk, advance).items():
                records[name] += done
        return records

    def _run_chunk(self, chunk: Sequence[Prompt], advance: Advance) -> Mapping[str, list[PromptRecord]]:
        drafted = {name: self._kept(name, self._drafted(name, chunk)) for name in self._decoders}
        judged = {name: self._kept(name, records) for name, records in self._judged(chunk, drafted).items()}
        typed = {}
        for name, records in judged.items():
            typed[name] = self._kept(name, self._typed(name, chunk, records))
            advance(name, len(chunk))
        return typed

    def _kept(self, name: str, records: list[PromptRecord]) -> list[PromptRecord]:
        """The same records, after storing those that are new or more complete than before."""
        file = self._files[name]
        file.add(record for record in records if record != file.get(record.prompt_id, record.prompt_sha))
        return records

    def _drafted(self, name: str, chunk: Sequence[Prompt]) -> list[PromptRecord]:
        """A record per prompt: the stored one, or a new one that has only drafts yet."""
        file = self._files[name]
        shas = [digest("\0".join((prompt.text, prompt.continuation, prompt.suffix))) for prompt in chunk]
        kept = [file.get(prompt.id, sha) for prompt, sha in zip(chunk, shas, strict=True)]
        missing = [prompt for prompt, record in zip(chunk, kept, strict=True) if record is None]
        asks = [Ask(prompt.text, prompt.id, prompt.suffix) for prompt in missing]
        decoded = iter(self._decoders[name].decoder.decode(asks))
        return [
            record or new_record(prompt.id, sha, next(decoded))
            for prompt, sha, record in zip(chunk, shas, kept, strict=True)
        ]

    def _judged(
        self, chunk: Sequence[Prompt], records: Mapping[str, list[PromptRecord]]
    ) -> Mapping[str, list[PromptRecord]]:
        """The same records with exact log-probabilities."""
        if self._evaluator is None:
            return records
        wanted: list[list[str]] = []
        for of_prompt in zip(*records.values(), strict=True):
            drafts = (draft for record in of_prompt for draft in record.drafts if draft.exact_logprobs is None)
            wanted.append(list(dict.fromkeys(draft.text for draft in drafts)))
        answers = self._evaluator.logprobs([prompt.text for prompt in chunk], wanted)
        found = [dict(zip(texts, answer, strict=True)) for texts, answer in zip(wanted, answers, strict=True)]
        return {
            name: [_with_logprobs(record, own) for record, own in zip(of_decoder, found, strict=True)]
            for name, of_decoder in records.items()
        }

    def _typed(self, name: str, chunk: Sequence[Prompt], records: list[PromptRecord]) -> list[PromptRecord]:
        """The same records with the counts of typing."""
        decoder, done = self._decoders[name], list(records)
        decoder.remember(chunk, records)
        if self._types:
            todo = [i for i, record in enumerate(done) if record.typing is None]
            found = type_all([chunk[i] for i in todo], decoder.suggest, self._max_words)
            for i, count in zip(todo, found, strict=True):
                done[i] = replace(done[i], typing=count)
        return done


@dataclass(slots=True)
class _Remembering:
    """A decoder that is asked only once for each place in a text."""

    decoder: Decoder
    known: dict[tuple[str, str], Sequence[str]] = field(default_factory=dict)

    def remember(self, prompts: Sequence[Prompt], records: Sequence[PromptRecord]) -> None:
        """Remember the drafts at these prompts' ends, and forget all others."""
        self.known = {(prompt.id, prompt.text): one.texts for prompt, one in zip(prompts, records, strict=True)}

    def suggest(self, places: Sequence[TypedText]) -> list[Sequence[str]]:
        """The drafts at each place."""
        missing = [place for place in places if (place.prompt.id, place.text) not in self.known]
        asks = [Ask(place.text, f"{place.prompt.id} {place.num_words}") for place in missing]
        for place, decoded in zip(missing, self.decoder.decode(asks), strict=True):
            self.known[place.prompt.id, place.text] = [draft.text for draft in decoded.drafts]
        return [self.known[place.prompt.id, place.text] for place in places]


def measured(
    contenders: Sequence[Contender],
    groups: Mapping[str, Sequence[Prompt]],
    folder: Path,
    *,
    evaluator: Evaluator | None = None,
    types: bool = False,
    max_words: int | None = None,
    conditions: Mapping[str, Any] | None = None,
    figures: FiguresOf = collect,
) -> dict[str, list[DecoderResult]]:
    """The results of all decoders on each group of prompts, with a progress bar. Arguments as in `QualityRun`."""
    run = QualityRun(contenders, folder, evaluator=evaluator, types=types, max_words=max_words, conditions=conditions)
    with progress_of([one.name for one in contenders], sum(map(len, groups.values()))) as advance:
        records = {name: run.run(prompts, advance) for name, prompts in groups.items()}
    return {
        name: [DecoderResult.of(one, prompts, records[name][one.name], figures) for one in contenders]
        for name, prompts in groups.items()
    }


def new_record(prompt_id: str, prompt_sha: str, decoded: Decoded) -> PromptRecord:
    """A record with only drafts."""
    return PromptRecord(prompt_id, prompt_sha, decoded.drafts, decoded.forward_rows, decoded.wall_s)


def _with_logprobs(record: PromptRecord, found: Mapping[str, tuple[float, ...]]) -> PromptRecord:
    drafts = tuple(
        draft if draft.exact_logprobs is not None else replace(draft, exact_logprobs=found[draft.text])
        for draft in record.drafts
    )
    return replace(record, drafts=drafts)
