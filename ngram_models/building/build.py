"""Building a KenLM model over token ids with KenLM's own `lmplz` and `build_binary`.

A build has three stages. Each leaves files that are named by a digest of all they were made from, so the next run of a
build that was killed takes up what is finished and still right, and removes the rest:

1. read: the corpus, tokenised, in shards;
2. estimate: `lmplz` makes an ARPA file of them;
3. pack: `build_binary` makes the binary, the manifest is written, and the folder of both is renamed to the model's.
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
from superdraft.ngram_models.building.shards import Shard, ShardFolder, rename_durably, training_lines
from superdraft.ngram_models.building.work_folder import WorkFolder, work_folder
from superdraft.ngram_models.errors import CorpusError
from superdraft.ngram_models.store.manifest import BINARY_FILE, CorpusSummary, Manifest, TokenizerIdentity, file_sha256
from superdraft.ngram_models.tools import Tools

# The Python package of KenLM is compiled for orders up to 6; a trie needs at least 2.
MIN_ORDER, MAX_ORDER = 2, 6
_MAX_QUANTIZE_BITS = 25
# Bits of a pointer that may be taken out of the trie's nodes; the largest value compresses most.
_POINTER_COMPRESSION_BITS = "22"

_ARPA_COUNT = re.compile(rb"ngram \d+=(\d+)")

Stage = Literal["read", "estimate", "pack"]
Progress = Callable[[Stage, int], None]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How a model is estimated and packed.

    Attributes:
        order: the longest n-gram, in tokens, 2 to 6.
        prune: n-grams seen at most this often are left out; one number an order from 1 up. The last one holds for the
            orders above, numbers beyond `order` are not used. They must not fall, and the first must be 0: single
            tokens are never left out.
        quantize_bits: bits of a probability, 1 to 25; None: full floats.
        backoff_quantize_bits: bits of a back-off weight, 1 to 25; None: as many as of a probability.
        memory: how much KenLM's programs may use for sorting: "4G", or "50%" of what the machine has.

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
            raise ValueError(f"The pruning must be numbers that start with 0 and do not fall, got {list(prune)}.")
        for bits in (self.quantize_bits, self.backoff_quantize_bits):
            if bits is not None and not 1 <= bits <= _MAX_QUANTIZE_BITS:
                raise ValueError(f"The quantisation must be 1 to {_MAX_QUANTIZE_BITS} bits, got {bits}.")
        if self.quantize_bits is None and self.backoff_quantize_bits is not None:
            raise ValueError("Back-off weights can only be quantised if probabilities are.")
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

    N-grams do not cross the end of a document or an end-of-text token. All work is done in a folder beside `folder`,
    which takes the model's place when it is complete, so a build that is killed leaves nothing that loads; the next
    one with the same documents goes on where it stopped. A model that is already at `folder` is replaced at the end.

    Args:
        documents: texts, or sequences of token ids; read once, never held together. Only an end-of-text id ends a
            token sequence; one that stops without it counts as cut off, so samples of a fixed length do not teach the
            model that texts end anywhere.
        folder: where the model goes; its last part is the model's name.
        tokenizer: whose ids the tokens are.
        tools: KenLM's programs.
        encoder: of that tokenizer; needed if there are documents of text.
        options: None: the defaults.
        description: of the corpus, for the manifest.
        licence: of the model, for the manifest.
        progress: called with the stage and the number of tokens that it has done.

    Raises:
        NgramBuildError: `folder` is something else than a model, another process builds it, a program failed, or
            the disk has too little room.
        CorpusError: there are no tokens, or one is not in the vocabulary.
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
        manifest = Manifest(
            name=folder.name,
            order=options.order,
            tokenizer=tokenizer,
            corpus=corpus,
            licence=licence,
            binary_sha256=file_sha256(work.new / BINARY_FILE),
            binary_bytes=(work.new / BINARY_FILE).stat().st_size,
            prune=options.prune[: options.order],
            quantize_bits=options.quantize_bits,
            backoff_quantize_bits=options.backoff_quantize_bits or options.quantize_bits,
            build_tool=f"{tools.version}: lmplz, build_binary",
            ngram_counts=_ngram_counts(arpa),
        )
        manifest.write(work.new)
        work.publish()
    return manifest


def estimate_command(tools: Tools, options: BuildOptions, temporary: Path) -> list[str]:
    """`lmplz`, from its standard input to its standard output."""
    # The fallback discounts are for corpora so small that Kneser-Ney's cannot be estimated; else it changes nothing.
    command = [str(tools.lmplz), "--order", str(options.order), "--discount_fallback", "--prune", *_prune(options)]
    return [*command, "--memory", options.memory, "--temp_prefix", f"{temporary}{os.sep}"]


def pack_command(tools: Tools, options: BuildOptions, arpa: Path, binary: Path, temporary: Path) -> list[str]:
    """`build_binary`, from an ARPA file to a trie with compressed pointers."""
    command = [str(tools.build_binary), "-T", f"{temporary}{os.sep}", "-S", options.memory]
    command += ["-a", _POINTER_COMPRESSION_BITS]
    if options.quantize_bits is not None:
        command += ["-q", str(options.quantize_bits), "-b", str(options.backoff_quantize_bits or options.quantize_bits)]
    return [*command, "trie", str(arpa), str(binary)]


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
        raise CorpusError("The corpus holds no tokens.")
    return shards


def _estimate(shards: list[Shard], work: WorkFolder, tools: Tools, options: BuildOptions, report: Progress) -> Path:
    """The ARPA file of the shards: an earlier run's if it was made of the same, else a new one."""
    # The memory is not among them: it changes how lmplz works, not what it finds.
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
    command = estimate_command(tools, options, work.temporary)
    run_program(command, stdin=lines, stdout=partial, log=work.temporary / "lmplz.log")
    return rename_durably(partial, arpa)


def _pack(arpa: Path, work: WorkFolder, tools: Tools, options: BuildOptions) -> None:
    command = pack_command(tools, options, arpa, work.new / BINARY_FILE, work.temporary)
    run_program(command, stdout=work.temporary / "build_binary.out", log=work.temporary / "build_binary.log")


def _ngram_counts(arpa: Path) -> tuple[int, ...]:
    """The counts per order in the head of an ARPA file, which ends at the first empty line."""
    counts = []
    with arpa.open("rb") as lines:
        for line in lines:
            if match := _ARPA_COUNT.match(line):
                counts.append(int(match[1]))
            elif counts:
                break
    return tuple(counts)
