"""Check of a KenLM binary before KenLM opens it.

KenLM trusts every byte of a binary: it follows pointers without looking where they lead. A file can match its manifest
and still be made, or damaged, so that a query reads beyond its end and ends the process. This check reads every number
that KenLM uses as a place in the file. Probabilities are not checked; wrong ones only make drafts worse.

The layout is that of KenLM's tries (lm/binary_format.cc, lm/search_trie.hh, lm/bhiksha.cc in KenLM's sources):

    header, vocabulary (sorted hashes), [tables of quantised values], unigrams, 2-grams, ..., n-grams, [words]

Each unigram and each n-gram of a middle order has the place of its first child; the children end where those of the
next n-gram begin. So the places must not decrease, and the last one must be within the next order.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# The first bytes of every binary: a sentence, then numbers that show byte order and alignment.
_MAGIC: Final = b"mmap lm http://kheafield.com/code format version 5\n".ljust(56, b"\0") + struct.pack(
    "<fffIIIQ", 0.0, 1.0, -0.5, 1, 2**32 - 1, 0, 1
)
_FIXED = struct.Struct("<B3xfIB3xI")  # order, probing multiplier, kind of model, whether words follow, version
_TRIE, _QUANTISED, _COMPRESSED = 2, 1, 2  # kinds of tries are _TRIE + the sum of their features
_KINDS: Final = range(_TRIE, _TRIE + _QUANTISED + _COMPRESSED + 1)
_MAX_QUANTISED_BITS = 25
_MAX_WORDS = 2**32 - 2  # KenLM keeps words in 32 bits
_PROB_BITS, _BACKOFF_BITS = 31, 32  # of values that are not quantised
_UNIGRAM_BYTES = 16  # two floats and the place of the first child
_SLACK_BYTES = 8  # at the end of each order, since KenLM reads 8 bytes at a time

_ARPA: Final = b"\\data\\"
_ARPA_COUNT = re.compile(rb"ngram\s+[0-9]+\s*=\s*([0-9]+)")
_ARPA_HEAD_BYTES = 4096

_AT_ONCE = 1 << 16  # n-grams checked in one go, a millisecond in which no other thread runs

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Pointers:
    """The places of the first children in a middle order.

    Attributes:
        base: index of the byte at which the order's n-grams begin.
        entry_bits: bits per n-gram.
        inline_bits: the last bits of an n-gram, which are the low bits of the place.
        steps: the n-grams from which on the high bits are 0, 1, 2 and so on; None: the low bits are all.
    """

    base: int
    entry_bits: int
    inline_bits: int
    steps: NDArray[np.uint64] | None

    def read(self, data: Bytes, start: int, stop: int) -> NDArray[np.uint64]:
        """The places of n-grams `start` to `stop`, shape [stop - start]."""
        index = np.arange(start, stop, dtype=np.uint64)
        bit = (index + np.uint64(1)) * np.uint64(self.entry_bits) - np.uint64(self.inline_bits)
        first = self.base + (start * self.entry_bits >> 3)
        size = self.base + (stop * self.entry_bits >> 3) - first + 1
        words = np.ndarray((size,), np.dtype("<u8"), buffer=data, offset=first, strides=(1,))  # one at every byte
        byte = (bit >> np.uint64(3)).astype(np.int64) - (first - self.base)
        mask = np.uint64((1 << self.inline_bits) - 1)
        low: NDArray[np.uint64] = (words[byte] >> (bit & np.uint64(7))) & mask
        if self.steps is None:
            return low
        high = np.searchsorted(self.steps, index, side="right").astype(np.uint64) - np.uint64(1)
        low |= high << np.uint64(self.inline_bits)
        return low


def check_binary(data: bytes | memoryview) -> None:
    """Check that no query can lead KenLM out of a binary.

    Args:
        data: the whole file: a KenLM trie, or a model as ARPA text, which KenLM parses with care.

    Raises:
        ValueError: it is neither, or a number in it leads out of it.
    """
    head = bytes(data[: len(_MAGIC)])
    if head == _MAGIC:
        _check_trie(np.frombuffer(data, np.uint8))
    elif head.startswith(_ARPA):
        counts = [int(count) for count in _ARPA_COUNT.findall(bytes(data[:_ARPA_HEAD_BYTES]))]
        if sum(counts) > len(data):  # KenLM reserves memory for as many
            raise ValueError(f"it announces {sum(counts)} n-grams, which {len(data)} bytes cannot hold")
    else:
        raise ValueError("it is neither a KenLM binary of this version nor ARPA text")


def _check_trie(data: Bytes) -> None:
    order, _, kind, _, _ = _unpack(data, _FIXED, len(_MAGIC))
    if kind not in _KINDS:
        raise ValueError("it is a KenLM binary that is not a trie; only tries can be checked")
    if order < 2:
        raise ValueError(f"it has order {order}; the lowest is 2")
    counts = [int(count) for count in _numbers(data, len(_MAGIC) + _FIXED.size, order)]
    if max(counts) > 8 * len(data) or counts[0] > _MAX_WORDS:
        raise ValueError(f"it announces {max(counts)} n-grams of one order, which {len(data)} bytes cannot hold")
    offset = -(-(len(_MAGIC) + _FIXED.size + 8 * order) // 8) * 8
    num_words = int(_numbers(data, offset, 1)[0])
    if num_words > counts[0]:
        raise ValueError(f"it has {num_words} words, but {counts[0]} unigrams")
    offset += 8 * (1 + counts[0])
    features = kind - _TRIE
    middle_bits, longest_bits = _PROB_BITS + _BACKOFF_BITS, _PROB_BITS
    if features & _QUANTISED:
        longest_bits, backoff_bits = _quantised_bits(data, offset)
        middle_bits = longest_bits + backoff_bits
        offset += 8 + 4 * ((order - 1 << longest_bits) + (order - 2 << backoff_bits))
    places = _numbers(data, offset + 8, 2 * (num_words + 2) - 1)[::2]
    _check_places([places], counts[1], order=1)
    offset += _UNIGRAM_BYTES * (counts[0] + 2)
    word_bits = counts[0].bit_length()
    max_steps_bits = 0
    if features & _COMPRESSED and order > 2:
        max_steps_bits = int(_part(data, offset, 2)[1])
    for middle in range(1, order - 1):
        count, next_count = counts[middle], counts[middle + 1]
        inline_bits, steps = next_count.bit_length(), None
        if features & _COMPRESSED:
            chopped = _chopped_bits(count + 1, next_count, max_steps_bits)
            inline_bits -= chopped
            num_steps = (next_count >> inline_bits) + 1
            steps = _numbers(data, -(-offset // 8) * 8 + 8, num_steps)
            _check_steps(steps, order=middle + 1)
            offset += 8 * (1 + num_steps) + 7
        entry_bits = word_bits + middle_bits + inline_bits
        size = _order_bytes(count, entry_bits)
        _part(data, offset, size)
        pointers = _Pointers(offset, entry_bits, inline_bits, steps)
        _check_places(_in_pieces(pointers, data, count + 1), next_count, order=middle + 1)
        offset += size
    _part(data, offset, _order_bytes(counts[-1], word_bits + longest_bits))


def _order_bytes(count: int, entry_bits: int) -> int:
    """Size of an order's n-grams, with one more, whose children's place ends those of the last."""
    return -(-(count + 1) * entry_bits // 8) + _SLACK_BYTES


def _quantised_bits(data: Bytes, offset: int) -> tuple[int, int]:
    """Bits of probabilities and of back-off weights."""
    _, prob_bits, backoff_bits = (int(value) for value in _part(data, offset, 3))
    if not (1 <= prob_bits <= _MAX_QUANTISED_BITS and 1 <= backoff_bits <= _MAX_QUANTISED_BITS):
        raise ValueError(f"it has values of {prob_bits} and {backoff_bits} bits; the most is 25")
    return prob_bits, backoff_bits


def _chopped_bits(num_places: int, max_place: int, most: int) -> int:
    """How many high bits of the places are kept apart, as KenLM computes it: what costs the fewest bits."""
    required = max_place.bit_length()
    costs = [
        (max_place >> (required - chopped)) * 64 - num_places * chopped for chopped in range(min(required, most) + 1)
    ]
    return costs.index(min(costs))


def _in_pieces(pointers: _Pointers, data: Bytes, count: int) -> Iterator[NDArray[np.uint64]]:
    for start in range(0, count, _AT_ONCE):
        yield pointers.read(data, start, min(count, start + _AT_ONCE))


def _check_places(pieces: Iterator[NDArray[np.uint64]] | Sequence[NDArray[np.uint64]], limit: int, order: int) -> None:
    last = np.uint64(0)
    for places in pieces:
        if places[0] < last or bool((places[1:] < places[:-1]).any()) or places[-1] > limit:
            raise ValueError(f"it has {order}-grams that point outside the {order + 1}-grams")
        last = places[-1]


def _check_steps(steps: NDArray[np.uint64], order: int) -> None:
    if steps[0] != 0 or bool((steps[1:] < steps[:-1]).any()):
        raise ValueError(f"it has {order}-grams whose compressed pointers are out of order")


def _part(data: Bytes, offset: int, size: int) -> Bytes:
    """Bytes of the file, all of which must exist."""
    if offset + size > len(data):
        raise ValueError(f"it ends after {len(data)} bytes, but its header announces more")
    return data[offset : offset + size]


def _unpack(data: Bytes, numbers: struct.Struct, offset: int) -> tuple[int, ...]:
    return numbers.unpack(_part(data, offset, numbers.size).tobytes())


def _numbers(data: Bytes, offset: int, count: int) -> NDArray[np.uint64]:
    """Integers of 64 bits, shape [count]."""
    return np.frombuffer(_part(data, offset, 8 * count).data, np.dtype("<u8"))
