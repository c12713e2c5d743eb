"""Reference for the distribution of a text's continuation: the sum over all its tokenisations.

It is slow, and written from the definition alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from superdraft.decoding.text.tokenizer import Tokenizer

NextLogprobs = Callable[[Sequence[int]], Sequence[float]]


def next_bytes(
    text: str, front: Sequence[int], tokenizer: Tokenizer, next_logprobs: NextLogprobs, excluded: set[int]
) -> dict[int | None, float]:
    """Return the distribution of the byte that follows `text`, given its bytes. The key None is the end of the text.

    Args:
        text: the typed text.
        front: the tokens before the typed text, at least one.
        tokenizer: the tokenizer.
        next_logprobs: returns ln p of every token, given the tokens before it.
        excluded: tokens that no text may contain.
    """
    own = tokenizer.hf_tokenizer.encode(text)
    typed = b"".join(tokenizer.token_bytes[i] for i in own)  # SentencePiece puts a space in front
    padding = len(typed) - len(text.encode())
    weights: dict[int | None, float] = {}
    for path, rest, weight in _tokenisations(typed, list(front), tokenizer, next_logprobs, excluded, 1.0):
        tokens = path[len(front) :]
        for token_id, logprob in enumerate(next_logprobs(path)):
            data = tokenizer.token_bytes[token_id]
            if token_id in excluded or not (
                (data.startswith(rest) and len(data) > len(rest)) or _ends(token_id, rest, tokenizer)
            ):
                continue
            if data and not is_canonical([*tokens, token_id], padding, tokenizer):
                continue
            if not data and not is_canonical(tokens, padding, tokenizer):
                continue
            key = data[len(rest)] if data else None
            weights[key] = weights.get(key, 0.0) + weight * math.exp(logprob)
    total = sum(weights.values())
    return {key: weight / total for key, weight in weights.items()}


def _ends(token_id: int, rest: bytes, tokenizer: Tokenizer) -> bool:
    return not rest and token_id in tokenizer.eos_token_ids


def _tokenisations(
    rest: bytes,
    path: list[int],
    tokenizer: Tokenizer,
    next_logprobs: NextLogprobs,
    excluded: set[int],
    weight: float,
) -> Iterator[tuple[list[int], bytes, float]]:
    """Yield every sequence of tokens within the typed bytes, with the bytes that remain and its weight."""
    yield path, rest, weight
    if not rest:
        return
    logprobs = next_logprobs(path)
    for token_id, data in enumerate(tokenizer.token_bytes):
        if data and token_id not in excluded and rest.startswith(data):
            longer = weight * math.exp(logprobs[token_id])
            yield from _tokenisations(rest[len(data) :], [*path, token_id], tokenizer, next_logprobs, excluded, longer)


def is_canonical(tokens: Sequence[int], padding: int, tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer encodes their text as these tokens. Bytes after the last complete character are ignored."""
    kept = list(tokens)
    while True:
        data = b"".join(tokenizer.token_bytes[i] for i in kept)
        try:
            data.decode()
            break
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                return False
            while len(b"".join(tokenizer.token_bytes[i] for i in kept)) > error.start:
                kept.pop()
    # Not by way of transformers, which takes five times as long; this is called thousands of times per text.
    ids = tokenizer.hf_tokenizer.backend_tokenizer.encode(data[padding:].decode()).ids
    return not kept or [i for i in ids if tokenizer.token_bytes[i]] == kept
