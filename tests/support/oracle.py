"""Reference implementation of Superposed Decoding: plain loops over plain lists, in probabilities instead of logs.

It is deliberately slow and simple. It follows the description of the method and shares no code with the product.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class OracleDraft:
    tokens: list[int]
    score: float  # sum of ln p_f
    length: int  # number of terms of the sum


@dataclass
class OracleResult:
    alive: list[OracleDraft]
    finished: list[OracleDraft]
    weights: list[list[float]]  # gamma before each decode step
    tied: bool  # at some step, two children had the same score up to rounding, so their order is undefined


def softmax(values: list[float], temperature: float) -> list[float]:
    largest = max(values)
    powers = [math.exp((value - largest) / temperature) for value in values]
    total = sum(powers)
    return [power / total for power in powers]


def run_oracle(
    logits: list[list[float]],
    ngram: Callable[[list[int], int], float] | None,
    *,
    k: int,
    m: int,
    tau: float,
    alpha: float,
    penalty: float,
    eos: set[int],
    suppressed: set[int],
    text_of: Callable[[list[int]], bytes],
) -> OracleResult:
    """Decode from given logits.

    `logits[step]` are the logits of the shared row at that step. `ngram(tokens, x)` is a probability, 0 for no support.
    """
    alive = [OracleDraft([], 0.0, 0)]
    finished: list[OracleDraft] = []
    weights: list[list[float]] = []
    tied = False
    for step, row in enumerate(logits):
        if not alive:
            break
        if step > 0:
            powers = [math.exp(draft.score - max(d.score for d in alive)) for draft in alive]
            weights.append([power / sum(powers) for power in powers])
        allowed = [(-row[x], x) for x in range(len(row)) if x not in suppressed]
        kept = [x for _, x in sorted(allowed)[:m]]
        probs = softmax(row, tau)
        mass = sum(probs[x] for x in kept)
        children = []
        for draft in alive:
            ngram_probs = [ngram(draft.tokens, x) if ngram else 1.0 for x in kept]
            no_support = ngram is not None and alpha > 0 and all(p == 0 for p in ngram_probs)
            for x, ngram_prob in zip(kept, ngram_probs, strict=True):
                lm = math.log(probs[x] / mass)
                if ngram is None or alpha == 0:
                    gained = lm
                elif no_support:
                    gained = (1 - alpha) * lm - penalty
                elif ngram_prob == 0:
                    continue
                else:
                    gained = (1 - alpha) * lm + alpha * math.log(ngram_prob)
                children.append((draft, x, draft.score + gained))
        children.sort(key=lambda child: -child[2])
        tied = tied or any(a[2] - b[2] < 1e-6 for a, b in itertools.pairwise(children))
        looked_at = 0
        new_alive: list[OracleDraft] = []
        for draft, x, score in children:
            if looked_at == 2 * k:
                break
            ends = x in eos
            tokens = draft.tokens if ends else [*draft.tokens, x]
            rivals = finished if ends else new_alive
            if any(text_of(rival.tokens) == text_of(tokens) for rival in rivals):
                continue
            looked_at += 1
            child = OracleDraft(tokens, score, draft.length + 1)
            if ends:
                finished.append(child)
            else:
                new_alive.append(child)
        alive = new_alive[:k]
        finished = sorted(finished, key=lambda draft: -draft.score)[:k]
    return OracleResult(alive, finished, weights, tied)


def oracle_answer(result: OracleResult, k: int, text_of: Callable[[list[int]], bytes]) -> list[OracleDraft]:
    """Return the best k of both lists by score per token: no duplicate texts, and an empty text only if it is alone."""
    order = sorted([*result.finished, *result.alive], key=lambda draft: -draft.score / max(draft.length, 1))
    different: list[OracleDraft] = []
    for draft in order:
        if all(text_of(other.tokens) != text_of(draft.tokens) for other in different):
            different.append(draft)
    return ([draft for draft in different if text_of(draft.tokens)] or order[:1])[:k]
