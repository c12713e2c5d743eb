"""Shards of the tokenised corpus on disk, which can be reused after a build was killed.

A shard contains the training lines of consecutive documents, as `lmplz` reads them: one line per text, one word per
token. Its file name begins with a digest of those documents and of the tokenizer, so a shard can be reused if the name
matches. A changed corpus changes the digests, even if it is read from the standard input.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import zstandard

from superdraft.ngram_models.building.corpus import Document, Text, encode_documents
from superdraft.ngram_models.building.encoder import Encoder
from superdraft.ngram_models.building.packed_files import open_unpacked
from superdraft.ngram_models.durable import rename_durably
from superdraft.ngram_models.errors import CorpusError, NgramBuildError
from superdraft.ngram_models.store.manifest import TokenizerIdentity
from superdraft.ngram_models.vocabulary import CUT, WordTable, split_at_end_of_text

# Enough documents for a tokenizer to use all cores, and little enough to hold in memory and to lose when killed.
SHARD_BYTES: Final = 1 << 23
_SUFFIX = ".lines.zst"
_FORMAT = "training lines 1"
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """A finished shard. `num_tokens` includes end-of-text tokens; a text that is cut off counts as a document."""

    path: Path
    digest: str
    num_tokens: int
    num_documents: int


class ShardFolder:
    """Writes the shards of a corpus, and reuses those of an earlier run.

    Args:
        folder: an existing folder for the shards.
        tokenizer: the tokenizer of the token ids.
        encoder: encoder for text documents; None if there are none.
    """

    def __init__(self, folder: Path, tokenizer: TokenizerIdentity, encoder: Encoder | None) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._words = WordTable(tokenizer.vocabulary_size, tokenizer.end_of_text_ids)
        self._end_of_text_ids = frozenset(tokenizer.end_of_text_ids)
        identity = {"format": _FORMAT, "encoder": encoder.fingerprint if encoder else "", **asdict(tokenizer)}
        self._identity = json.dumps(identity, sort_keys=True).encode()
        self._found = {shard.digest: shard for shard in _finished_shards(folder)}

    def shards(self, documents: Iterable[Document]) -> Iterator[Shard]:
        """Yield each shard of a corpus as soon as it is on disk.

        Raises:
            CorpusError: a token id is outside the vocabulary.
        """
        for batch in _batches(documents):
            digest = self._digest(batch)
            yield self._found.get(digest) or self._write(digest, batch)

    def remove_others(self, shards: Iterable[Shard]) -> None:
        """Remove all files of the folder except these shards."""
        kept = {shard.path for shard in shards}
        for path in self._folder.iterdir():
            if path not in kept:
                path.unlink()

    def _digest(self, documents: list[Document]) -> str:
        digest = hashlib.sha256(self._identity)
        for document in documents:
            kind, data = _as_bytes(document)
            digest.update(kind + len(data).to_bytes(8, "little"))
            digest.update(data)
        return digest.hexdigest()[:32]

    def _write(self, digest: str, documents: list[Document]) -> Shard:
        partial = self._folder / f"{digest}.partial"
        num_tokens, num_documents = 0, 0
        with partial.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file, closefd=False) as packed:
            for token_ids in self._encode(documents):
                self._check(token_ids)
                for line in self._lines(token_ids):
                    packed.write(line)
                    num_documents += 1
                num_tokens += len(token_ids)
        name = f"{digest}.{num_tokens}.{num_documents}{_SUFFIX}"
        return Shard(rename_durably(partial, self._folder / name), digest, num_tokens, num_documents)

    def _encode(self, documents: list[Document]) -> Iterator[list[int]]:
        def without_encoder(texts: list[str]) -> list[list[int]]:
            if texts:
                raise ValueError("Text documents need an encoder.")
            return []

        return encode_documents(documents, self._encoder or without_encoder, min(self._end_of_text_ids, default=None))

    def _lines(self, token_ids: list[int]) -> Iterator[bytes]:
        words = self._words
        for text, ended in split_at_end_of_text(token_ids, self._end_of_text_ids):
            line = " ".join([words[token_id] for token_id in text])
            # lmplz ends every line with </s>. The extra word after a text that was cut off keeps the model from
            # learning that the text may end there.
            yield (line + "\n" if ended else f"{line} {CUT}\n").encode("ascii")

    def _check(self, token_ids: list[int]) -> None:
        size = self._tokenizer.vocabulary_size
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < size:
            wrong = next(token_id for token_id in token_ids if not 0 <= token_id < size)
            raise CorpusError(
                f"The corpus contains the token id {wrong}, but the tokenizer has {size} tokens: "
                "the corpus was tokenised with another tokenizer."
            )


def training_lines(shards: Iterable[Shard], report: Callable[[int], None]) -> Iterator[bytes]:
    """Yield the lines of all shards, in blocks of bytes.

    Args:
        shards: in order.
        report: called after each shard with the number of tokens so far.

    Raises:
        NgramBuildError: a shard is damaged.
    """
    num_tokens = 0
    for shard in shards:
        try:
            with open_unpacked(str(shard.path)) as lines:
                while block := lines.read(_READ_BYTES):
                    yield block
        except OSError as error:
            raise NgramBuildError(f"{shard.path} is damaged ({error}). Remove it and build again.") from None
        num_tokens += shard.num_tokens
        report(num_tokens)


def _finished_shards(folder: Path) -> Iterator[Shard]:
    for path in folder.glob(f"*{_SUFFIX}"):
        digest, num_tokens, num_documents = path.name.removesuffix(_SUFFIX).split(".")
        yield Shard(path, digest, int(num_tokens), int(num_documents))


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    num_bytes = 0
    for document in documents:
        batch.append(document)
        # For text, the number of characters is close enough to the number of bytes.
        num_bytes += len(document.characters) if isinstance(document, Text) else 4 * len(document)
        if num_bytes >= SHARD_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _as_bytes(document: Document) -> tuple[bytes, bytes]:
    """Kind and content of a document, for the digest."""
    if isinstance(document, Text):
        return (b"T" if document.is_whole else b"P"), document.characters.encode()
    return b"I", array("q", document).tobytes()
