"""Records of a decoder's drafts per prompt, stored so that an interrupted run continues where it stopped."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from superdraft.evaluation.decoders.decoders import DecodedDraft
from superdraft.evaluation.measures.typing_simulation import TypingCount

_FORMAT = 3  # of a record; files of another one have other names


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """The drafts of one prompt or question.

    Attributes:
        prompt_id: id of the prompt.
        prompt_sha: digest of the prompt and its reference; a record of a changed prompt is not used.
        drafts: the drafts, best first.
        forward_rows: model rows of all decode steps, without the prompt's own pass; None: unknown.
        wall_s: the prompt's share of the decoding time.
        typing: counts of typing the reference; None: it has not been typed.
    """

    prompt_id: str
    prompt_sha: str
    drafts: tuple[DecodedDraft, ...]
    forward_rows: int | None
    wall_s: float
    typing: TypingCount | None = None

    @property
    def texts(self) -> list[str]:
        """The drafts' texts, best first."""
        return [draft.text for draft in self.drafts]


_RECORD = TypeAdapter(PromptRecord)


class RecordFile:
    """The records of one decoder with one set of settings: a file of JSON lines, the settings in the first.

    Args:
        folder: folder of the run; created if it is missing.
        name: name of the decoder.
        settings: everything that the records depend on; other settings have another file.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        header = json.dumps({"name": name, "settings": settings, "format": _FORMAT}, sort_keys=True)
        slug = re.sub(r"[^A-Za-z0-9.+-]+", "_", name)[:60]
        self.path = folder / f"{slug}-{digest(header)}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._records = {record.prompt_id: record for record in _read(self.path)}
        if not self.path.exists():
            self.path.write_text(header + "\n", encoding="utf-8")

    def get(self, prompt_id: str, prompt_sha: str) -> PromptRecord | None:
        """The record of a prompt, if there is one for the same text."""
        record = self._records.get(prompt_id)
        return record if record is not None and record.prompt_sha == prompt_sha else None

    def add(self, records: Iterable[PromptRecord]) -> None:
        """Append records."""
        records = list(records)
        if not records:
            return
        with self.path.open("a", encoding="utf-8") as file:
            # Begin a new line even after one that is incomplete because a run was killed.
            file.write("".join(f"\n{json.dumps(asdict(record))}" for record in records) + "\n")
        self._records.update((record.prompt_id, record) for record in records)


def digest(text: str) -> str:
    """A short hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> Iterable[PromptRecord]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        with suppress(ValidationError):  # an empty or incomplete line
            yield _RECORD.validate_json(line)
