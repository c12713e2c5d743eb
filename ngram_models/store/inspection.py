"""Looking into a model: what it expects after a phrase, and whether it is whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path

from superdraft.ngram_models.scoring.scorer import KenLMScorer
from superdraft.ngram_models.store.manifest import Manifest
from superdraft.ngram_models.store.registry import open_scorer


@dataclass(frozen=True, slots=True)
class Continuation:
    """A token that may come next, and its probability."""

    token_id: int
    probability: float


def top_continuations(
    scorer: KenLMScorer, manifest: Manifest, token_ids: Sequence[int], num_continuations: int
) -> list[Continuation]:
    """The most probable next tokens after a phrase, best first.

    KenLM cannot list the n-grams that begin with a context, so the whole vocabulary is scored.

    Args:
        scorer: of the model.
        manifest: of the same model.
        token_ids: of the phrase, which is taken as the middle of a text.
        num_continuations: how many at most. Tokens that the corpus lacks are left out; of the end-of-text tokens,
            which are one word of the model, the first stands for all.
    """
    ends = set(manifest.tokenizer.end_of_text_ids)
    candidates = [
        token_id
        for token_id in range(manifest.tokenizer.vocabulary_size)
        if scorer.is_known(token_id) and (token_id not in ends or token_id == min(ends))
    ]
    (scores,) = scorer.score([scorer.initial_state(token_ids)], [candidates])
    ranked = sorted(zip(scores, candidates, strict=True), key=lambda pair: (-pair[0], pair[1]))
    return [Continuation(token_id, exp(score)) for score, token_id in ranked[:num_continuations]]


def verify_model(folder: Path, fingerprint: str | None = None) -> Iterator[str]:
    """Check a model; yields a sentence for every check that it passes.

    Args:
        folder: of the model.
        fingerprint: `tokenizer_fingerprint` of the tokenizer that it should be for; None: not checked.

    Raises:
        NgramModelError: it is broken or for another tokenizer; the message tells what is wrong.
    """
    manifest = Manifest.read(folder)
    yield "The manifest can be read."
    manifest.verify_binary(folder)
    yield f"The binary has its {manifest.binary_bytes:,} bytes and its SHA-256."
    if fingerprint is not None:
        manifest.verify_tokenizer(fingerprint)
        yield "Its words are the tokens of this tokenizer."
    open_scorer(folder, manifest)
    yield f"KenLM loads it; its order is {manifest.order}."
