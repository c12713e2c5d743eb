"""Decode prompts by several decoders, judge the drafts, type the references; what is done already is not done again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from superdraft.evaluation.decoder_spec import DecoderSpec
from superdraft.evaluation.decoders import Ask, Decoded, Decoder
from superdraft.evaluation.evaluator import DraftText, Evaluator
from superdraft.evaluation.prompts import Prompt
from superdraft.evaluation.records import DraftRecord, PromptRecord, RecordFile, digest
from superdraft.evaluation.typing_simulation import TypedText, type_all
from superdraft.evaluation.workbench import Workbench

CHUNK_SIZE = 128

Advance = Callable[[str, int], None]
"""Told a decoder's name and how many more prompts it is through with."""


class QualityRun:
    """All decoders over the same prompts.

    A chunk of prompts goes through all decoders before the next one: the engine keeps the prompts' keys and values from
    one decoder to the next, and a draft that several decoders make is judged once.

    Args:
        workbench: the models.
        specs: the decoders.
        folder: where records are kept.
        judges: find the drafts' exact log-probabilities.
        types: simulate typing.
        typed_words: words of each reference that are typed; None: all.
        prefix_words: to how many words the prompts were cut, which tells the records apart.
    """

    def __init__(
        self,
        workbench: Workbench,
        specs: Sequence[DecoderSpec],
        folder: Path,
        *,
        judges: bool = True,
        types: bool = True,
        typed_words: int | None = None,
        prefix_words: int | None = None,
    ) -> None:
        self._decoders: dict[str, Decoder] = {spec.name: workbench.decoder(spec) for spec in specs}
        self._evaluator: Evaluator | None = workbench.open_evaluator() if judges else None
        self._types = types
        self._typed_words = typed_words
        shared = {"evaluator": workbench.choice.evaluator, "typed_words": typed_words, "prefix_words": prefix_words}
        self._files = {
            spec.name: RecordFile(folder, spec.name, {**workbench.settings(spec), **shared}) for spec in specs
        }

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
        """The same records, those written down that are new or say more than before."""
        file = self._files[name]
        file.add(record for record in records if record != file.get(record.prompt_id, record.prompt_sha))
        return records

    def _drafted(self, name: str, chunk: Sequence[Prompt]) -> list[PromptRecord]:
        """A record of each prompt: the kept one, or a new one that has drafts and nothing else yet."""
        file = self._files[name]
        shas = [digest(f"{prompt.text}\0{prompt.continuation}") for prompt in chunk]
        kept = [file.get(prompt.id, sha) for prompt, sha in zip(chunk, shas, strict=True)]
        missing = [prompt for prompt, record in zip(chunk, kept, strict=True) if record is None]
        asks = [Ask(prompt.text, prompt.id, prompt.domain, prompt.is_mid_word) for prompt in missing]
        decoded = iter(self._decoders[name].decode(asks))
        return [
            record or _new_record(prompt, sha, next(decoded))
            for prompt, sha, record in zip(chunk, shas, kept, strict=True)
        ]

    def _judged(
        self, chunk: Sequence[Prompt], records: Mapping[str, list[PromptRecord]]
    ) -> Mapping[str, list[PromptRecord]]:
        """The same records, with exact log-probabilities."""
        if self._evaluator is None:
            return records
        wanted: list[list[DraftText]] = []
        for of_prompt in zip(*records.values(), strict=True):
            drafts = (draft for record in of_prompt for draft in record.drafts if draft.exact_logprobs is None)
            wanted.append(list(dict.fromkeys(DraftText(draft.text, draft.token_ids) for draft in drafts)))
        answers = self._evaluator.logprobs([prompt.text for prompt in chunk], wanted)
        found = [dict(zip(texts, answer, strict=True)) for texts, answer in zip(wanted, answers, strict=True)]
        return {
            name: [_with_logprobs(record, own) for record, own in zip(of_decoder, found, strict=True)]
            for name, of_decoder in records.items()
        }

    def _typed(self, name: str, chunk: Sequence[Prompt], records: list[PromptRecord]) -> list[PromptRecord]:
        """The same records, with keystrokes."""
        todo = [index for index, record in enumerate(records) if record.keys is None]
        if not self._types or not todo:
            return records
        decoder = self._decoders[name]

        def suggest(places: Sequence[TypedText]) -> list[list[str]]:
            asks = [Ask(place.text, f"{place.prompt.id} {place.num_words}", place.prompt.domain) for place in places]
            return [[draft.text for draft in decoded.drafts] for decoded in decoder.decode(asks)]

        prompts, first_drafts = [chunk[i] for i in todo], [records[i].texts for i in todo]
        keys = dict(zip(todo, type_all(prompts, first_drafts, suggest, self._typed_words), strict=True))
        return [replace(record, keys=keys[i]) if i in keys else record for i, record in enumerate(records)]


def _new_record(prompt: Prompt, prompt_sha: str, decoded: Decoded) -> PromptRecord:
    drafts = tuple(
        DraftRecord(draft.text, draft.token_ids, draft.score, draft.token_logprobs) for draft in decoded.drafts
    )
    return PromptRecord(prompt.id, prompt_sha, drafts, decoded.forward_rows, decoded.wall_s)


def _with_logprobs(record: PromptRecord, found: Mapping[DraftText, tuple[float, ...]]) -> PromptRecord:
    drafts = tuple(
        draft
        if draft.exact_logprobs is not None
        else replace(draft, exact_logprobs=found[DraftText(draft.text, draft.token_ids)])
        for draft in record.drafts
    )
    return replace(record, drafts=drafts)
