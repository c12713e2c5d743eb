"""Building a KenLM model over token ids with KenLM's own `lmplz` and `build_binary`.

A build has three stages:

1. read: tokenise the corpus and write it to disk in shards;
2. estimate: `lmplz` turns the shards into an ARPA file;
3. pack: `build_binary` turns the ARPA file into a binary, the manifest is written, and their folder is renamed to the
   model's.

The files of the first two stages are named after a digest of everything they were made from. If a build is killed, the
next run reuses the files that are complete and still valid, and removes the others.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from superdraft.ngram_models.building.corpus import Document
from superdraft.ngram_models.building.disk_space import check_disk_space, memory_bytes
from superdraft.ngram_models.building.encoder import Encoder
from superdraft.ngram_models.building.programs import run_program
from superdraft.ngram_models.building.shards import Shard, ShardFolder, training_lines
from superdraft.ngram_models.building.work_folder import WorkFolder, work_folder
from superdraft.ngram_models.durable import rename_durably
from superdraft.ngram_models.errors import CorpusError
from superdraft.ngram_models.store.manifest import BINARY_FILE, CorpusSummary, Manifest, TokenizerIdentity, file_sha256
from superdraft.ngram_models.tools import Tools

# KenLM's Python package is compiled for orders up to 6; a trie needs at least 2.
MIN_ORDER, MAX_ORDER = 2, 6
_MAX_QUANTIZE_BITS = 25
# Maximum number of pointer bits that build_binary may move out of the trie's nodes; the largest value compresses most.
_POINTER_COMPRESSION_BITS = "22"

_ARPA_COUNT = re.compile(rb"ngram \d+=(\d+)")

Stage = Literal["read", "estimate", "pack"]
Progress = Callable[[Stage, int], None]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Options for estimating and packing a model.

    Attributes:
        order: length of the longest n-gram, in tokens; 2 to 6.
        prune: n-grams that occur at most this often are left out; one number per order from 1 up. The last number
            also applies to higher orders; numbers beyond `order` are ignored. The numbers must not decrease, and the
            first must be 0 because single tokens are never left out.
        quantize_bits: bits per probability, 1 to 25; None: full floats.
        backoff_quantize_bits: bits per back-off weight, 1 to 25; None: the same as `quantize_bits`.
        memory: memory that KenLM's programs may use for sorting, for example "4G", or "50%" of the machine's.

    Raises:
        ValueError: a value is out of range.
    """

    order: int = 6
    prune: tuple[int, ...] = (0, 0, 1, 1, 2, 2)
    quantize_bits: int | None = 8
    backoff_quantize_bits: int | None = 8
    memory: str = "4G"

    def __post_init__(self) -> None:
        if not MIN_ORDER <= self.order <= MAX_ORDER:
            raise ValueError(f"The order must be between {MIN_ORDER} and {MAX_ORDER}, got {self.order}.")
        prune = self.prune
        if not prune or prune[0] != 0 or list(prune) != sorted(prune):
            raise ValueError(f"The pruning counts must start with 0 and not decrease, got {list(prune)}.")
        for bits in (self.quantize_bits, self.backoff_quantize_bits):
            if bits is not None and not 1 <= bits <= _MAX_QUANTIZE_BITS:
                raise ValueError(f"The quantisation must be between 1 and {_MAX_QUANTIZE_BITS} bits, got {bits}.")
        if self.quantize_bits is None and self.backoff_quantize_bits is not None:
            raise ValueError("Back-off weights can be quantised only if probabilities are quantised too.")
        memory_bytes(self.memory)


def build_ngram_model(
    documents: Iterable[Document],
    folder: Path,
    *,
    tokenizer: TokenizerIdentity,
    tools: Tools,
    encoder: Encoder | None = None,
    options: BuildOptions | None = None,
    description: str,
    licence: str,
    progress: Progress | None = None,
) -> Manifest:
    """Build a model from a corpus and put it at `folder`.

    N-grams do not cross the end of a document or an end-of-text token. The work is done in another folder next to
    `folder`, and the finished model is moved into place at the end, replacing any model that was there. A killed build
    therefore leaves no incomplete model; the next build from the same documents continues where it stopped.

    Args:
        documents: texts or sequences of token ids, read once as a stream. A token sequence that does not end with an
            end-of-text id counts as cut off: samples of a fixed length must not teach the model that a text can end
            anywhere.
        folder: folder of the new model; its last part is the model's name.
        tokenizer: the tokenizer that the model is for.
        tools: KenLM's programs.
        encoder: encoder of that tokenizer; required if there are text documents.
        options: None for the defaults.
        description: description of the corpus, for the manifest.
        licence: licence of the model, for the manifest.
        progress: called with the stage and the number of tokens processed so far in this stage.

    Raises:
        NgramBuildError: `folder` exists and is not a model, another process is building the same model, a program
            failed, or there is too little disk space.
        CorpusError: the corpus is unreadable or empty, or has a token id outside the vocabulary.
    """
    options = options or BuildOptions()
    report = progress or (lambda _stage, _num_tokens: None)
    with work_folder(folder) as work:
        shards = _read(documents, ShardFolder(work.shards, tokenizer, encoder), report)
        corpus = CorpusSummary(
            description, sum(shard.num_tokens for shard in shards), sum(shard.num_documents for shard in shards)
        )
        arpa = _estimate(shards, work, tools, options, report)
        report("pack", corpus.num_tokens)
        _pack(arpa, work, tools, options)
        binary = work.new / BINARY_FILE
        manifest = Manifest(
            name=folder.name,
            order=options.order,
            tokenizer=tokenizer,
            corpus=corpus,
            licence=licence,
            binary_sha256=file_sha256(binary),
            binary_bytes=binary.stat().st_size,
            prune=options.prune[: options.order],
            quantize_bits=options.quantize_bits,
            backoff_quantize_bits=options.backoff_quantize_bits or options.quantize_bits,
            build_tool=f"{tools.version}: lmplz, build_binary",
            ngram_counts=_ngram_counts(arpa),
        )
        manifest.write(work.new)
        work.publish()
    return manifest


def _prune(options: BuildOptions) -> list[str]:
    return [str(count) for count in options.prune[: options.order]]


def _read(documents: Iterable[Document], folder: ShardFolder, report: Progress) -> list[Shard]:
    shards: list[Shard] = []
    num_tokens = 0
    for shard in folder.shards(documents):
        shards.append(shard)
        num_tokens += shard.num_tokens
        report("read", num_tokens)
    is_empty = not any(shard.num_documents for shard in shards)
    folder.remove_others([] if is_empty else shards)
    if is_empty:
        raise CorpusError("The corpus contains no tokens.")
    return shards


def _estimate(shards: list[Shard], work: WorkFolder, tools: Tools, options: BuildOptions, report: Progress) -> Path:
    """Make the ARPA file of the shards, or reuse one that an earlier run made from the same inputs."""
    # `memory` is not included: it does not change the result.
    made_from = {
        "shards": [shard.digest for shard in shards],
        "order": options.order,
        "prune": _prune(options),
        "tool": tools.version,
    }
    arpa = work.path / f"{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:32]}.arpa"
    finished = arpa.exists()
    for other in work.path.glob("*.arpa*"):
        if other != arpa:
            other.unlink()
    if finished:
        return arpa
    num_tokens = sum(shard.num_tokens for shard in shards)
    check_disk_space(work.path, num_tokens, options.order, options.prune)
    partial = arpa.with_suffix(".arpa.partial")
    lines = training_lines(shards, lambda num_tokens: report("estimate", num_tokens))
    # The fallback applies only to corpora that are too small for estimating Kneser-Ney discounts.
    command = [str(tools.lmplz), "--order", str(options.order), "--discount_fallback", "--prune", *_prune(options)]
    command += ["--memory", options.memory, "--temp_prefix", f"{work.temporary}{os.sep}"]
    run_program(command, stdin=lines, stdout=partial, log=work.temporary / "lmplz.log")
    return rename_durably(partial, arpa)


def _pack(arpa: Path, work: WorkFolder, tools: Tools, options: BuildOptions) -> None:
    """Convert the ARPA file to a trie with compressed pointers."""
    command = [str(tools.build_binary), "-T", f"{work.temporary}{os.sep}", "-S", options.memory]
    command += ["-a", _POINTER_COMPRESSION_BITS]
    if options.quantize_bits is not None:
        command += ["-q", str(options.quantize_bits), "-b", str(options.backoff_quantize_bits or options.quantize_bits)]
    command += ["trie", str(arpa), str(work.new / BINARY_FILE)]
    run_program(command, stdout=work.temporary / "build_binary.out", log=work.temporary / "build_binary.log")


def _ngram_counts(arpa: Path) -> tuple[int, ...]:
    """Number of n-grams per order, from the header of an ARPA file."""
    counts = []
    with arpa.open("rb") as lines:
        for line in lines:
            if match := _ARPA_COUNT.match(line):
                counts.append(int(match[1]))
            elif counts:
                break
    return tuple(counts)
