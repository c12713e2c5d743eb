"""Which drafts of an answer are those of the one before, further along.

A typist who goes on as a draft says gets the rest of that draft with the next key. To the user it is one suggestion,
which is shown once and accepted once, though it is part of several answers.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

MAX_SESSIONS = 1024

Origin = tuple[str, int]
"""The answer in which a draft appeared first, and its index there."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """The latest answer of a session. Of its prompt only a digest is kept."""

    num_characters: int
    digest: bytes
    drafts: tuple[tuple[str, Origin], ...]


class ContinuedDrafts:
    """Remembers the latest answer of each typing session. For one event loop."""

    def __init__(self) -> None:
        self._latest: OrderedDict[tuple[str, str], _Answer] = OrderedDict()

    def origins(
        self, caller: str, session: str, prompt: str, drafts: Sequence[str], completion_id: str
    ) -> list[Origin]:
        """Where each draft of an answer appeared first, which may be in this answer.

        Args:
            caller: name of the request's key.
            session: the typing session.
            prompt: the text before the drafts.
            drafts: their texts, in order of their indices.
            completion_id: of the answer.
        """
        known, typed = self._latest.get((caller, session)), None
        if known is not None and _digest(prompt[: known.num_characters]) == known.digest:
            typed = prompt[known.num_characters :]
        origins = []
        for index, draft in enumerate(drafts):
            origin = completion_id, index
            if known is not None and typed is not None:
                text = typed + draft
                agreeing = (
                    old
                    for before, old in known.drafts
                    # What follows a draft that was typed or accepted as a whole is another one.
                    if len(typed) < len(before) and (text.startswith(before) or before.startswith(text))
                )
                origin = next((old for old in agreeing if old not in origins), origin)
            origins.append(origin)
        self._latest[caller, session] = _Answer(len(prompt), _digest(prompt), tuple(zip(drafts, origins, strict=True)))
        self._latest.move_to_end((caller, session))
        if len(self._latest) > MAX_SESSIONS:
            self._latest.popitem(last=False)
        return origins


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
