"""Options shared by the commands that make n-gram models."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from superdraft.ngram_models.home import user_models_folder
from superdraft.ngram_models.store.manifest import TokenizerIdentity
from superdraft.ngram_models.store.registry import is_model_name
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint

if TYPE_CHECKING:
    from superdraft.decoding.text.tokenizer import Tokenizer


def output_folder(name_or_path: str) -> Path:
    """Folder of a new model: a plain name goes among the user's models, anything else is a path."""
    return (
        user_models_folder() / name_or_path
        if is_model_name(name_or_path)
        else Path(name_or_path).expanduser().resolve()
    )


def prune_counts(text: str) -> tuple[int, ...]:
    """The counts of `--prune`.

    Raises:
        ValueError: the text holds something other than integers.
    """
    try:
        return tuple(int(count) for count in shlex.split(text))
    except ValueError:
        raise ValueError(f"The pruning must be integers separated by spaces, got {text!r}.") from None


def tokenizer_identity(name: str, tokenizer: "Tokenizer") -> TokenizerIdentity:
    """The tokenizer's identity in a model's manifest."""
    return TokenizerIdentity(
        name=name,
        fingerprint=tokenizer_fingerprint(tokenizer.vocabulary),
        vocabulary_size=max(tokenizer.vocabulary.values()) + 1,
        end_of_text_ids=tuple(sorted(tokenizer.eos_token_ids)),
    )
