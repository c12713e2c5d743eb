"""What one more token does to a draft's text: end of text, stop strings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from superdraft.decoding.method.draft_set import Draft


@dataclass(frozen=True, slots=True)
class TokenAppender:
    """Makes a child of a draft; the `Extend` of `draft_set.advance`.

    Attributes:
        token_bytes: the bytes of every token id.
        eos_token_ids: tokens that end a text; they add nothing to it.
        stop: stop strings in UTF-8. The draft ends before the first one in its text, wherever token borders lie.
    """

    token_bytes: Sequence[bytes]
    eos_token_ids: frozenset[int]
    stop: tuple[bytes, ...] = ()

    def __call__(self, draft: Draft, token_id: int) -> Draft:
        """The child of `draft` with one more token; its finish reason is "stop" if it ends here."""
        if token_id in self.eos_token_ids:
            return replace(draft, finish_reason="stop")
        token = self.token_bytes[token_id]
        piece = token[len(draft.rest) :]
        text = draft.text + piece
        child = replace(
            draft,
            token_ids=(*draft.token_ids, token_id),
            pieces=(*draft.pieces, piece),
            text=text,
            rest=b"",
        )
        # The draft's own text held no stop string, so a new one ends inside the new token's bytes.
        starts = [text.find(stop, max(0, len(draft.text) - len(stop) + 1)) for stop in self.stop]
        first = min((start for start in starts if start >= 0), default=None)
        return child if first is None else replace(child, text=text[:first], finish_reason="stop")
