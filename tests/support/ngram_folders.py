"""N-gram models in a home folder, created, replaced and damaged as by a build or an operator."""

import random
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.ngram import TINY_ARPA, tiny_manifest

from superdraft.ngram_models.store.manifest import BINARY_FILE, TokenizerIdentity, file_sha256
from superdraft.ngram_models.store.registry import ListedModel
from superdraft.server.ngrams.registry import NgramModels


def put_model(
    home: Path, name: str, arpa: str = TINY_ARPA, *, order: int = 3, tokenizer: TokenizerIdentity | None = None
) -> Path:
    """Write a model to a temporary folder and rename it to its place, replacing an existing model."""
    folder = home / "ngram" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial.", dir=folder.parent))
    binary = partial / BINARY_FILE
    binary.write_text(arpa, encoding="ascii")
    manifest = tiny_manifest(
        name=name, order=order, binary_sha256=file_sha256(binary), binary_bytes=binary.stat().st_size
    )
    if tokenizer is not None:
        manifest = replace(manifest, tokenizer=tokenizer)
    manifest.write(partial)
    if folder.exists():
        old = partial.with_suffix(".old")
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)
    return folder


def damage(folder: Path) -> None:
    """Change one byte of the model. The result is a new file, so processes that mapped the old one are not affected."""
    content = bytearray((folder / BINARY_FILE).read_bytes())
    content[-3] ^= 1
    partial = folder / "partial"
    partial.write_bytes(content)
    partial.replace(folder / BINARY_FILE)


def tiny_with(unigram_3: str) -> str:
    """The tiny model with a different log10 unigram probability of token 3."""
    return TINY_ARPA.replace("-0.7\t3", f"{unigram_3}\t3")


def random_arpa(seed: int, vocabulary_size: int) -> str:
    """A bigram model with random numbers. It is not normalised, which scoring does not require."""
    rng = random.Random(seed)
    words = [str(token_id) for token_id in range(1, vocabulary_size)]
    pairs = sorted({(rng.choice(words), rng.choice(words)) for _ in range(10 * vocabulary_size)})
    lines = ["\\data\\", f"ngram 1={len(words) + 3}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    lines += ["-4\t<unk>\t0", "0\t<s>\t0", "-3\t</s>\t0"]
    lines += [f"{rng.uniform(-4, -1):.3f}\t{word}\t{rng.uniform(-0.5, 0):.3f}" for word in words]
    lines += ["", "\\2-grams:", *(f"{rng.uniform(-1, -0.1):.3f}\t{a} {b}" for a, b in pairs), "", "\\end\\", ""]
    return "\n".join(lines)


class NamedScorers(NgramModels):
    """Scorers by name, which are not on disk."""

    def __init__(self, scorers: Mapping[str, Any], default: str | None = None) -> None:
        super().__init__()
        self.default = default
        self.default_scorer = None if default is None else scorers[default]
        self._scorers = scorers

    async def listed(self) -> list[ListedModel]:
        return [ListedModel(name, Path(name), None, None) for name in self._scorers]

    async def _part(self, name: str) -> Any:
        return self._scorers[name] if name in self._scorers else await super()._part(name)
