"""KenLM's trie binaries as numpy arrays: every n-gram at once, without KenLM.

KenLM (Heafield, 2011) keeps the n-grams as a trie over their words from the last to the first, each level an array of
bit-packed entries sorted by word. The layout is that of its format version 5 (`lm/binary_format`, `lm/trie`,
`lm/bhiksha`, `lm/quantize` of KenLM 0.3.0).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from superdraft.ngram_models.errors import NoNgramTablesError
from superdraft.ngram_models.vocabulary import BEGIN_OF_SENTENCE, END_OF_SENTENCE, UNKNOWN

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

_MAGIC: Final = b"mmap lm http://kheafield.com/code format version 5\n\0"
_MAGIC_OF_ANY_VERSION: Final = b"mmap lm http://kheafield.com/code "
_HEADER: Final = np.dtype(
    {
        "names": ["magic", "floats", "indices", "one", "order", "model_type", "has_words", "search_version"],
        "formats": ["V56", ("<f4", 3), ("<u4", 3), "<u8", "u1", "<u4", "u1", "<u4"],
        "offsets": [0, 56, 68, 80, 88, 96, 100, 104],
        "itemsize": 108,
    }
)
_KINDS: Final = (
    "probing hash tables",
    "probing hash tables with rest costs",
    "a trie",
    "a trie with quantization",
    "a trie with array-compressed pointers",
    "a trie with quantization and array-compressed pointers",
)
_FIRST_TRIE: Final = 2
_QUANTISED, _ARRAY = 1, 2  # bits of the kind, counted from the first trie
_MAX_ORDER: Final = 64  # more can only be damage
_QUANTISATION_VERSION, _ARRAY_VERSION = 2, 0
_MAX_QUANTISATION_BITS: Final = 25
_SIGN: Final = np.uint32(1 << 31)


@dataclass(frozen=True, slots=True, eq=False)
class Ngrams:
    """All n-grams of one order, N of them, in the order of their reversed words.

    Attributes:
        contexts: of each, the number of the n-gram that all its words but the last make, among those of the order
            below; of single words -1. Shape [N].
        words: its last word, shape [N].
        logprobs: log10 of its probability, shape [N].
        backoffs: log10 of its back-off weight, shape [N]; 0 in the highest order.
    """

    contexts: Ints
    words: Ints
    logprobs: Floats
    backoffs: Floats


@dataclass(frozen=True, slots=True, eq=False)
class KenLMTrie:
    """What a trie binary holds.

    Attributes:
        words: the number of each word; `<unk>` is 0, `<s>` and `</s>` are there.
        ngrams: by order, single words first.
    """

    words: dict[str, int]
    ngrams: tuple[Ngrams, ...]


def read_trie(path: Path) -> KenLMTrie:
    """Read a trie binary of any of KenLM's four kinds.

    Raises:
        NoNgramTablesError: the file is something else, lacks its words, or is cut off or damaged.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise NoNgramTablesError(_no_tables(path, f"cannot be read ({error.strerror})")) from None
    try:
        return _Reader(data).read()
    except _UnreadableError as error:
        raise NoNgramTablesError(_no_tables(path, str(error))) from None


def _no_tables(path: Path, problem: str) -> str:
    return f"{path} {problem}; tables are made of KenLM's tries only. The model is looked up on the host instead."


class _UnreadableError(Exception):
    """Ends a sentence that begins with the file's name."""


class _Reader:
    """Takes the parts of a file one after another, as KenLM lays them out."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self._data = data
        kind, self._counts, self._has_words = _read_header(data)
        self._is_quantised, self._has_arrays = bool(kind & _QUANTISED), bool(kind & _ARRAY)
        self._at = -(-(_HEADER.itemsize + 8 * len(self._counts)) // 8) * 8
        self._array_bits = 0
        self._prob_bits, self._backoff_bits = 31, 32
        self._tables: list[tuple[Floats, Floats]] = []

    def read(self) -> KenLMTrie:
        counts = self._counts
        self._take(8 + 8 * counts[0])  # hashes of the words, which stand at the end of the file as text
        if self._is_quantised:
            self._read_quantisation()
        unigrams, first_children = self._read_unigrams()
        levels = [unigrams]
        # The trie begins with the word that the n-gram ends in.
        last_words, keys = unigrams.words, unigrams.words
        for level in range(1, len(counts)):
            parents = _parents(first_children, counts[level])
            firsts, logprobs, backoffs, first_children = self._read_level(level)
            # The context of an n-gram w1 ... wn is found under the context of its parent w2 ... wn, as the child w1.
            contexts = firsts if level == 1 else _find(keys, levels[-1].contexts[parents] * counts[0] + firsts)
            last_words, keys = last_words[parents], parents * counts[0] + firsts
            if np.any(firsts >= counts[0]) or np.any(keys[1:] <= keys[:-1]):
                raise _UnreadableError("is damaged: its n-grams are not sorted")
            levels.append(Ngrams(contexts, last_words, logprobs, backoffs))
        return KenLMTrie(self._read_words(), tuple(levels))

    def _take(self, num_bytes: int) -> NDArray[np.uint8]:
        part = self._data[self._at : self._at + num_bytes]
        if len(part) < num_bytes:
            raise _UnreadableError(f"is cut off or damaged: it ends after {len(self._data):,} bytes")
        self._at += num_bytes
        return part

    def _read_quantisation(self) -> None:
        version, *bits = (int(byte) for byte in self._take(8)[:3])
        if version != _QUANTISATION_VERSION or not all(1 <= num <= _MAX_QUANTISATION_BITS for num in bits):
            raise _UnreadableError(f"is damaged or its quantisation is of another version ({version})")
        self._prob_bits, self._backoff_bits = bits
        for level in range(1, len(self._counts)):
            logprobs = self._take(4 << self._prob_bits).view("<f4")
            is_longest = level + 1 == len(self._counts)
            backoffs = logprobs[:0] if is_longest else self._take(4 << self._backoff_bits).view("<f4")
            self._tables.append((logprobs, backoffs))

    def _read_unigrams(self) -> tuple[Ngrams, Ints]:
        num = self._counts[0]
        dtype = np.dtype([("logprob", "<f4"), ("backoff", "<f4"), ("next", "<u8")])
        records = self._take((num + 2) * dtype.itemsize).view(dtype)[: num + 1]
        values = records[:num]
        unigrams = Ngrams(np.full(num, -1), np.arange(num), values["logprob"].copy(), values["backoff"].copy())
        return unigrams, records["next"].astype(np.int64)

    def _read_level(self, level: int) -> tuple[Ints, Floats, Floats, Ints]:
        """First words, log-probabilities and back-off weights of an order, and each one's first child (one more)."""
        num = self._counts[level]
        is_longest = level + 1 == len(self._counts)
        tops, inline_bits = (np.zeros(1, np.int64), 0) if is_longest else self._read_pointer_array(level)
        word_bits = self._counts[0].bit_length()
        value_bits = self._prob_bits + (0 if is_longest else self._backoff_bits)
        entry_bits = word_bits + value_bits + inline_bits
        packed = _Packed(self._take(((1 + num) * entry_bits + 7) // 8 + 8), entry_bits)
        firsts = packed.field(0, word_bits, num).astype(np.int64)
        logprobs, backoffs = self._values(level, packed, word_bits, num)
        if is_longest:
            return firsts, logprobs, backoffs, tops
        pointers = packed.field(word_bits + value_bits, inline_bits, num + 1).astype(np.int64)
        if self._has_arrays:
            pointers |= (np.searchsorted(tops, np.arange(num + 1), side="right") - 1) << inline_bits
        return firsts, logprobs, backoffs, pointers

    def _read_pointer_array(self, level: int) -> tuple[Ints, int]:
        """Where the upper bits of the pointers to children rise by one, and how many lower bits the entries hold."""
        num, max_pointer = self._counts[level] + 1, self._counts[level + 1]
        needed_bits = max_pointer.bit_length()
        if not self._has_arrays:
            return np.zeros(1, np.int64), needed_bits
        start = self._at
        if level == 1:
            version, self._array_bits = (int(byte) for byte in self._data[start : start + 2])
            if version != _ARRAY_VERSION:
                raise _UnreadableError(f"is damaged or its pointer arrays are of another version ({version})")
        # KenLM takes as many bits out of the entries as make the file smallest, and the fewest of those.
        costs = [
            (max_pointer >> (needed_bits - bits)) * 64 - num * bits
            for bits in range(min(needed_bits, self._array_bits) + 1)
        ]
        inline_bits = needed_bits - costs.index(min(costs))
        length = (max_pointer >> inline_bits) + 1
        part = self._take(8 * (1 + length) + 7)
        aligned = -start % 8 + 8
        return part[aligned : aligned + 8 * length].view("<u8").astype(np.int64), inline_bits

    def _values(self, level: int, packed: "_Packed", at: int, num: int) -> tuple[Floats, Floats]:
        """Log-probabilities and back-off weights, which lie `at` bits after the start of each entry."""
        is_longest = level + 1 == len(self._counts)
        no_backoffs = np.zeros(num, np.float32)
        if self._is_quantised:  # the back-off weight comes first
            logprobs, backoffs = self._tables[level - 1]
            backoff_bits = 0 if is_longest else self._backoff_bits
            codes = packed.field(at + backoff_bits, self._prob_bits, num)
            return logprobs[codes], no_backoffs if is_longest else backoffs[packed.field(at, backoff_bits, num)]
        # A probability's sign is always set and so not kept.
        logprobs = (packed.field(at, self._prob_bits, num).astype(np.uint32) | _SIGN).view(np.float32)
        if is_longest:
            return logprobs, no_backoffs
        return logprobs, packed.field(at + self._prob_bits, self._backoff_bits, num).astype(np.uint32).view(np.float32)

    def _read_words(self) -> dict[str, int]:
        if not self._has_words:
            raise _UnreadableError("was built without the texts of its words (build_binary -v)")
        texts = self._data[self._at :].tobytes().decode(errors="replace").split("\0")[:-1]
        words = {text: number for number, text in enumerate(texts)}
        markers = {UNKNOWN, BEGIN_OF_SENTENCE, END_OF_SENTENCE}
        if len(words) != self._counts[0] or texts[0] != UNKNOWN or not markers <= words.keys():
            raise _UnreadableError("is cut off or damaged: its words are not all there")
        return words


def _read_header(data: NDArray[np.uint8]) -> tuple[int, list[int], bool]:
    """The kind of the trie, counted from the first, the number of n-grams of each order, and whether words follow."""
    start = data[: len(_MAGIC)].tobytes()
    if start != _MAGIC or len(data) < _HEADER.itemsize:
        if start.startswith(_MAGIC_OF_ANY_VERSION):
            raise _UnreadableError("is a KenLM binary that is cut off, unfinished or of another format version than 5")
        raise _UnreadableError("is no KenLM binary (an ARPA file is none)")
    header: Any = data[: _HEADER.itemsize].view(_HEADER)[0]
    numbers = [*header["floats"].tolist(), *header["indices"].tolist()[:2], int(header["one"])]
    if numbers != [0.0, 1.0, -0.5, 1, 2**32 - 1, 1]:
        raise _UnreadableError("was built on a machine of another kind")
    kind, order = int(header["model_type"]), int(header["order"])
    if not _FIRST_TRIE <= kind < len(_KINDS):
        name = _KINDS[kind] if kind < len(_KINDS) else f"of the unknown kind {kind}"
        raise _UnreadableError(f"is {name}")
    if header["search_version"] != 1:
        raise _UnreadableError(f"is {_KINDS[kind]} of version {header['search_version']} instead of 1")
    counts = data[_HEADER.itemsize : _HEADER.itemsize + 8 * order]
    if not 2 <= order <= _MAX_ORDER or len(counts) < 8 * order:
        raise _UnreadableError("is cut off or damaged: its header is not whole")
    return kind - _FIRST_TRIE, counts.view("<u8").tolist(), bool(header["has_words"])


class _Packed:
    """Entries of `entry_bits` bits each, one after another.

    Eight entries are `entry_bits` bytes, so a field of every eighth entry lies at one place of a byte and is read in
    one strided go.
    """

    def __init__(self, data: NDArray[np.uint8], entry_bits: int) -> None:
        self._data = data
        self._entry_bits = entry_bits

    def field(self, at: int, bits: int, num: int) -> NDArray[np.uint64]:
        """A field of up to 57 bits, `at` bits after the start of its entry, of the first `num` entries."""
        values = np.empty(num, np.uint64)
        for phase in range(min(8, num)):
            byte, shift = divmod(phase * self._entry_bits + at, 8)
            length = len(values[phase::8])
            words = np.ndarray((length,), "<u8", self._data, byte, (self._entry_bits,))
            values[phase::8] = words >> np.uint64(shift)
        return values & np.uint64((1 << bits) - 1)


def _parents(first_children: Ints, num_children: int) -> Ints:
    """The parent of each child, shape [num_children]; given where each parent's children begin, and the last's end."""
    nums = np.diff(first_children)
    if first_children[0] != 0 or first_children[-1] != num_children or np.any(nums < 0):
        raise _UnreadableError("is damaged: pointers to n-grams are out of order")
    return np.repeat(np.arange(len(nums)), nums)


def _find(keys: Ints, wanted: Ints) -> Ints:
    """The position of each wanted key among the sorted `keys`."""
    found = np.searchsorted(keys, wanted)
    if np.any(np.append(keys, -1)[found] != wanted):
        raise _UnreadableError("is damaged: n-grams lack their contexts")
    return found
