"""Building a KenLM model over token ids with KenLM's own `lmplz` and `build_binary`."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from superdraft.ngram_models.errors import BuildToolMissingError, CorpusError, NgramBuildError
from superdraft.ngram_models.manifest import (
    BINARY_FILE,
    MANIFEST_FILE,
    CorpusSummary,
    Manifest,
    TokenizerIdentity,
    file_sha256,
)
from superdraft.ngram_models.tools import Tools
from superdraft.ngram_models.vocabulary import CUT, WordTable, split_at_end_of_text

# The Python package of KenLM is compiled for orders up to 6; a trie needs at least 2.
MIN_ORDER, MAX_ORDER = 2, 6
_MAX_QUANTIZE_BITS = 25
# Bits of a pointer that may be taken out of the trie's nodes; the largest value compresses most.
_POINTER_COMPRESSION_BITS = "22"
_PROGRESS_EVERY_TOKENS = 100_000

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
        memory: how much `lmplz` may use, as its `-S`: "4G", "80%".

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


def build_ngram_model(
    sequences: Iterable[Sequence[int]],
    folder: Path,
    *,
    tokenizer: TokenizerIdentity,
    tools: Tools,
    options: BuildOptions | None = None,
    description: str,
    licence: str,
    progress: Progress | None = None,
) -> Manifest:
    """Build a model from token sequences and put it at `folder`.

    The tokens are streamed to `lmplz`; sequences are never held together. N-grams do not cross the end of a sequence
    or an end-of-text token. All work is done in a temporary folder beside `folder`, which is renamed when it is
    complete, so a build that is killed leaves nothing that loads. A model that is already at `folder` is replaced at
    the end.

    Args:
        sequences: token ids. Only an end-of-text id ends a text; a sequence that stops without one counts as cut off,
            so samples of a fixed length do not teach the model that texts end anywhere.
        folder: where the model goes; its last part is the model's name.
        tokenizer: whose ids the tokens are.
        tools: KenLM's programs.
        options: None: the defaults.
        description: of the corpus, for the manifest.
        licence: of the model, for the manifest.
        progress: called with the stage and the number of tokens read so far.

    Raises:
        NgramBuildError: `folder` is something else than a model, or a program failed.
        CorpusError: there are no tokens, or one is not in the vocabulary.
    """
    options = options or BuildOptions()
    _refuse_to_replace_other_things(folder)
    report = progress or (lambda _stage, _num_tokens: None)
    with _folder_beside(folder) as partial:
        lines = _TrainingLines(sequences, tokenizer, report)
        _estimate(lines, partial, tools, options, report)
        report("pack", lines.num_tokens)
        _pack(partial, tools, options)
        manifest = Manifest(
            name=folder.name,
            order=options.order,
            tokenizer=tokenizer,
            corpus=CorpusSummary(description, lines.num_tokens, lines.num_documents),
            licence=licence,
            binary_sha256=file_sha256(partial / BINARY_FILE),
            binary_bytes=(partial / BINARY_FILE).stat().st_size,
            prune=options.prune[: options.order],
            quantize_bits=options.quantize_bits,
            backoff_quantize_bits=options.backoff_quantize_bits or options.quantize_bits,
            build_tool=f"{tools.version}: lmplz, build_binary",
        )
        manifest.write(partial)
        _replace(folder, partial)
    return manifest


def estimate_command(tools: Tools, options: BuildOptions, temporary: Path) -> list[str]:
    """`lmplz`, from its standard input to its standard output."""
    prune = [str(count) for count in options.prune[: options.order]]
    # The fallback discounts are for corpora so small that Kneser-Ney's cannot be estimated; else it changes nothing.
    command = [str(tools.lmplz), "--order", str(options.order), "--discount_fallback", "--prune", *prune]
    return [*command, "--memory", options.memory, "--temp_prefix", f"{temporary}{os.sep}"]


def pack_command(tools: Tools, options: BuildOptions, arpa: Path, binary: Path) -> list[str]:
    """`build_binary`, from an ARPA file to a trie with compressed pointers."""
    command = [str(tools.build_binary), "-T", f"{arpa.parent}{os.sep}", "-a", _POINTER_COMPRESSION_BITS]
    if options.quantize_bits is not None:
        command += ["-q", str(options.quantize_bits), "-b", str(options.backoff_quantize_bits or options.quantize_bits)]
    return [*command, "trie", str(arpa), str(binary)]


class _TrainingLines:
    """The sequences as lines of words, one a text, counting what passes."""

    def __init__(self, sequences: Iterable[Sequence[int]], tokenizer: TokenizerIdentity, report: Progress) -> None:
        self._sequences = sequences
        self._vocabulary_size = tokenizer.vocabulary_size
        self._end_of_text_ids = frozenset(tokenizer.end_of_text_ids)
        self._words = WordTable(tokenizer.vocabulary_size, tokenizer.end_of_text_ids)
        self._report = report
        self.num_tokens = 0
        self.num_documents = 0

    def __iter__(self) -> Iterator[bytes]:
        words, next_report = self._words, _PROGRESS_EVERY_TOKENS
        for sequence in self._sequences:
            self._check(sequence)
            for text, ended in split_at_end_of_text(sequence, self._end_of_text_ids):
                line = " ".join([words[token_id] for token_id in text])
                # lmplz ends every line with </s>. A text that was cut off gets a word of its own there, else the
                # model would learn from it that any word may end a text.
                yield (line + "\n" if ended else f"{line} {CUT}\n").encode("ascii")
                self.num_documents += 1
            self.num_tokens += len(sequence)
            if self.num_tokens >= next_report:
                self._report("read", self.num_tokens)
                next_report = self.num_tokens + _PROGRESS_EVERY_TOKENS

    def _check(self, sequence: Sequence[int]) -> None:
        if sequence and not 0 <= min(sequence) <= max(sequence) < self._vocabulary_size:
            wrong = next(token_id for token_id in sequence if not 0 <= token_id < self._vocabulary_size)
            raise CorpusError(
                f"The corpus holds the token id {wrong}, but the tokenizer has {self._vocabulary_size} tokens: "
                "it was made with another tokenizer."
            )


def _estimate(lines: _TrainingLines, partial: Path, tools: Tools, options: BuildOptions, report: Progress) -> None:
    with (partial / "model.arpa").open("wb") as arpa, (partial / "lmplz.log").open("wb") as log:
        process = _started(estimate_command(tools, options, partial), arpa.fileno(), log.fileno())
        # A broken pipe means that lmplz stopped early; its exit status and its log tell why.
        with suppress(BrokenPipeError), process:
            try:
                _feed(process, lines, report)
            except BrokenPipeError:
                raise
            except BaseException:
                process.kill()
                raise
    _check_exit("lmplz", process.returncode, partial / "lmplz.log")


def _feed(process: "subprocess.Popen[bytes]", lines: _TrainingLines, report: Progress) -> None:
    assert process.stdin is not None
    process.stdin.writelines(lines)
    if lines.num_documents == 0:
        raise CorpusError("The corpus holds no tokens.")
    report("estimate", lines.num_tokens)


def _started(command: list[str], stdout: int, stderr: int) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr)
    except OSError as error:
        raise BuildToolMissingError(f"{command[0]} cannot be started: {error.strerror}.") from None


def _pack(partial: Path, tools: Tools, options: BuildOptions) -> None:
    command = pack_command(tools, options, partial / "model.arpa", partial / BINARY_FILE)
    log = partial / "build_binary.log"
    with log.open("wb") as file:
        try:
            done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
        except OSError as error:
            raise BuildToolMissingError(f"{command[0]} cannot be started: {error.strerror}.") from None
    _check_exit("build_binary", done.returncode, log)
    for path in partial.iterdir():
        if path.name != BINARY_FILE:
            path.unlink()


def _check_exit(program: str, exit_code: int, log: Path) -> None:
    if exit_code != 0:
        tail = " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-600:]
        raise NgramBuildError(f"{program} failed with exit code {exit_code}: {tail}")


def _refuse_to_replace_other_things(folder: Path) -> None:
    is_model = (folder / MANIFEST_FILE).is_file()
    if folder.exists() and not is_model and not (folder.is_dir() and not any(folder.iterdir())):
        raise NgramBuildError(f"{folder} exists and is no n-gram model. Choose another name or remove it.")


@contextmanager
def _folder_beside(folder: Path) -> Iterator[Path]:
    """A temporary folder on the same file system as `folder`, named so that nobody looks for models in it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        # mkdtemp's own folder is for its maker alone; the model must get the usual permissions.
        (temporary / "new").mkdir()
        yield temporary / "new"
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(folder: Path, new: Path) -> None:
    """Put `new` at `folder`; what was there goes away with the temporary folder."""
    if folder.exists():
        folder.rename(new.parent / "old")
    new.rename(folder)
