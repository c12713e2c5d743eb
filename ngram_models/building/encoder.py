"""Batch encoder: a language model's tokenizer for many texts at once."""

import hashlib
from typing import Any


class Encoder:
    """Converts texts to token ids, without adding special tokens.

    The tokenizers library uses all cores and releases the interpreter lock, so no worker processes are needed. It is
    called directly if possible: transformers builds several lists per text, of which only the ids are used here, and
    takes 40% longer.

    Args:
        tokenizer: a transformers tokenizer.

    Attributes:
        fingerprint: SHA-256 (hex) of everything that determines how a text is tokenised; empty if the tokenizer is not
            implemented by the tokenizers library.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self.fingerprint = ""
        if self._backend is not None:
            # A model's tokenizer file may set these for its prompts. transformers also disables them for each call.
            self._backend.no_truncation()
            self._backend.no_padding()
            self.fingerprint = hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text."""
        if self._backend is not None:
            return [encoded.ids for encoded in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids
