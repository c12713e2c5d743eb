"""KenLM's trie binaries written from a list of n-grams, since its Python package only reads them.

Whether they are right is for KenLM to say: it loads them.
"""

import itertools
import struct

import numpy as np

MASK = (1 << 64) - 1
TRIE, QUANT_TRIE, ARRAY_TRIE, QUANT_ARRAY_TRIE = range(2, 6)


def ngrams_of(sentences, order, rng):
    """N-grams with random weights: word tuples -> (log10 probability, log10 back-off weight).

    Each order but the first is counted in fewer of the sentences than the order below, so backing off is common. All
    parts of an n-gram are n-grams, as KenLM wants it.
    """
    words = {"<unk>", "<s>", "</s>"}.union(*sentences)
    ngrams = {(word,): None for word in sorted(words)}
    for length in range(2, order + 1):
        for words in sentences[: len(sentences) * (order + 2 - length) // order]:
            ngrams |= {tuple(words[i : i + length]): None for i in range(len(words) - length + 1)}

    def weights(length):
        # A third of the back-off weights are 0, which KenLM writes in a way of its own. None is nearly 0.
        backoff = rng.choice([0, 1, 1]) * round(rng.uniform(-2, 0.5), 3) if length < order else 0
        return -rng.uniform(0.01, 6), float(backoff)

    return {words: weights(len(words)) for words in ngrams}


def write_trie(path, ngrams, *, quantisation=None, array_bits=None):
    """Write n-grams, all of whose parts are n-grams too, as KenLM's `build_binary` would.

    Args:
        path: the file.
        ngrams: word tuples -> (log10 probability, log10 back-off weight).
        quantisation: bits of a probability and of a back-off weight (2 or more); None: floats.
        array_bits: bits of a pointer to children that may be kept in an array; None: the plain trie.
    """
    texts = sorted((word for (word,) in filter(lambda words: len(words) == 1, ngrams)), key=_hash_order)
    number = {text: index for index, text in enumerate(texts)}
    order = max(map(len, ngrams))
    contexts = {words[:-1] for words in ngrams}
    # By the reversed numbers: each order is a level of the trie.
    levels = [
        sorted((tuple(number[word] for word in reversed(words)), words) for words in ngrams if len(words) == length)
        for length in range(1, order + 1)
    ]
    kind = TRIE + (quantisation is not None) + 2 * (array_bits is not None)
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.write(_header(kind, [len(level) for level in levels]))
        hashes = [murmur_hash_64a(text.encode()) for text in texts[1:]]
        file.write(struct.pack(f"<{len(hashes) + 2}Q", len(hashes), *hashes, 0))
        weights = [[_with_mark(ngrams[words], words in contexts) for _, words in level] for level in levels]
        tables = []
        if quantisation is not None:
            tables = [_quantiser(level, *quantisation) for level in weights[1:]]
            file.write(bytes([2, *quantisation]).ljust(8, b"\0"))
            for probs, backoffs in tables[:-1]:
                file.write(probs.tobytes() + backoffs.tobytes())
            file.write(tables[-1][0].tobytes())
        pointers = [_pointers(level, longer) for level, longer in itertools.pairwise(levels)]
        for (prob, backoff), pointer in zip([*weights[0], (0, 0)], pointers[0], strict=True):
            file.write(struct.pack("<ffQ", prob, backoff, pointer))
        file.write(bytes(16))
        word_bits = len(levels[0]).bit_length()
        for depth in range(1, order):
            is_longest = depth == order - 1
            file.write(
                _level(
                    file.tell(),
                    [numbers[-1] for numbers, _ in levels[depth]],
                    word_bits,
                    [
                        _packed_weights(pair, tables[depth - 1] if tables else None, is_longest)
                        for pair in weights[depth]
                    ],
                    _num_weight_bits(quantisation, is_longest),
                    None if is_longest else pointers[depth],
                    array_bits,
                )
            )
        file.write("".join(f"{text}\0" for text in texts).encode())


def murmur_hash_64a(data):
    """MurmurHash64A with seed 0, of texts of less than 8 bytes."""
    assert len(data) < 8
    factor = 0xC6A4A7935BD1E995
    value = len(data) * factor & MASK
    if data:
        value = (value ^ int.from_bytes(data, "little")) * factor & MASK
    value = (value ^ value >> 47) * factor & MASK
    return value ^ value >> 47


def _hash_order(text):
    return -1 if text == "<unk>" else murmur_hash_64a(text.encode())


def _header(kind, counts):
    magic = b"mmap lm http://kheafield.com/code format version 5\n\0".ljust(56, b"\0")
    sanity = struct.pack("<3f3IQ", 0.0, 1.0, -0.5, 1, 2**32 - 1, 0, 1)
    fixed = struct.pack("<B3xfIB3xI", len(counts), 1.5, kind, True, 1)
    header = magic + sanity + fixed + struct.pack(f"<{len(counts)}Q", *counts)
    return header.ljust(-(-len(header) // 8) * 8, b"\0")


def _with_mark(weights, is_context):
    """A back-off weight of 0 is negative if nothing goes on from there."""
    prob, backoff = weights
    return prob, backoff or (0.0 if is_context else -0.0)


def _quantiser(weights, prob_bits, backoff_bits):
    probs = np.quantile([prob for prob, _ in weights], np.linspace(0, 1, 1 << prob_bits)).astype("<f4")
    # Those of weight 0 have two codes of their own.
    others = [backoff for _, backoff in weights if backoff] or [1.0]
    backoffs = np.quantile(others, np.linspace(0, 1, (1 << backoff_bits) - 2))
    return probs, np.concatenate([[-0.0, 0.0], backoffs]).astype("<f4")


def _num_weight_bits(quantisation, is_longest):
    prob_bits, backoff_bits = quantisation or (31, 32)
    return prob_bits if is_longest else prob_bits + backoff_bits


def _packed_weights(weights, tables, is_longest):
    prob, backoff = weights
    if tables is None:
        prob_code, backoff_code = struct.unpack("<2I", struct.pack("<2f", prob, backoff))
        return (prob_code & 0x7FFFFFFF) | (0 if is_longest else backoff_code << 31)
    probs, backoffs = tables
    prob_code = int(np.abs(probs - prob).argmin())
    if is_longest:
        return prob_code
    is_marked = not np.signbit(backoff)
    backoff_code = 2 + int(np.abs(backoffs[2:] - backoff).argmin()) if backoff else int(is_marked)
    return prob_code << (len(backoffs) - 1).bit_length() | backoff_code


def _pointers(level, longer):
    """Where the children of each n-gram begin in the level below, and where the last one's end."""
    starts = {}
    for index, (numbers, _) in enumerate(longer):
        starts.setdefault(numbers[:-1], index)
    pointers = [len(longer)]
    for numbers, _ in reversed(level):
        pointers.append(starts.get(numbers, pointers[-1]))
    return pointers[::-1]


def _level(position, words, word_bits, weights, weight_bits, pointers, array_bits):
    head, inline_bits = b"", 0
    if pointers is not None:
        inline_bits = pointers[-1].bit_length()
        if array_bits is not None:
            inline_bits -= _chopped_bits(len(pointers), pointers[-1], array_bits)
            array = [
                next(index for index, pointer in enumerate(pointers) if pointer >> inline_bits >= top)
                for top in range((pointers[-1] >> inline_bits) + 1)
            ]
            padding = -position % 8
            head = (bytes([0, array_bits]).ljust(padding + 8, b"\0") + struct.pack(f"<{len(array)}Q", *array)).ljust(
                8 * (1 + len(array)) + 7, b"\0"
            )
    entry_bits = word_bits + weight_bits + inline_bits
    bits = 0
    entries = itertools.zip_longest(words, weights, pointers or [], fillvalue=0)
    for index, (word, weight, pointer) in enumerate(entries):
        entry = word | weight << word_bits | (pointer & (1 << inline_bits) - 1) << word_bits + weight_bits
        bits |= entry << index * entry_bits
    return head + bits.to_bytes(((1 + len(words)) * entry_bits + 7) // 8 + 8, "little")


def _chopped_bits(num_pointers, max_pointer, array_bits):
    needed = max_pointer.bit_length()
    costs = {
        bits: (max_pointer >> needed - bits) * 64 - num_pointers * bits for bits in range(min(needed, array_bits) + 1)
    }
    return min(costs, key=costs.get)
