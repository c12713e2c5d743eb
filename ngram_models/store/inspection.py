"""Inspection of a model: likely continuations of a phrase, and integrity checks."""

from collections.abc import Iterator, Sequence
from math import exp
from pathlib import Path

from superdraft.ngram_models.scoring.scorer import KenLMScorer
from superdraft.ngram_models.store.manifest import Manifest
from superdraft.ngram_models.store.registry import open_scorer


def top_continuations(
    scorer: KenLMScorer, manifest: Manifest, token_ids: Sequence[int], num_continuations: int
) -> list[tuple[int, float]]:
    """Most probable next tokens after a phrase with their probabilities, best first.

    KenLM cannot list the n-grams that begin with a context, so the whole vocabulary is scored. Tokens that are not in
    the corpus are left out. All end-of-text tokens are one word of the model; the smallest id represents them.

    Args:
        scorer: scorer of the model.
        manifest: manifest of the same model.
        token_ids: the phrase, which counts as the middle of a text.
        num_continuations: maximum number of tokens to return.
    """
    ends = set(manifest.tokenizer.end_of_text_ids)
    candidates = [
        token_id
        for token_id in range(manifest.tokenizer.vocabulary_size)
        if scorer.is_known(token_id) and (token_id not in ends or token_id == min(ends))
    ]
    (scores,) = scorer.score([scorer.initial_state(token_ids)], [candidates])
    ranked = sorted(zip(scores, candidates, strict=True), key=lambda pair: (-pair[0], pair[1]))
    return [(token_id, exp(score)) for score, token_id in ranked[:num_continuations]]


def verify_model(folder: Path, fingerprint: str | None = None) -> Iterator[str]:
    """Check a model, and yield a sentence for each check that it passes.

    Args:
        folder: the model's folder.
        fingerprint: `tokenizer_fingerprint` of the tokenizer that the model should be for; None: not checked.

    Raises:
        NgramModelError: the model is damaged or for another tokenizer; the message says what is wrong.
    """
    manifest = Manifest.read(folder)
    yield "The manifest can be read."
    manifest.verify_binary(folder)
    yield f"The binary matches the manifest: {manifest.binary_bytes:,} bytes and the SHA-256."
    if fingerprint is not None:
        manifest.verify_tokenizer(fingerprint)
        yield "The model is for this tokenizer."
    open_scorer(folder, manifest)
    yield f"KenLM can load the binary; its order is {manifest.order}."
