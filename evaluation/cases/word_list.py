"""Lists of known words, to tell the words that drafts complete from broken ones."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from superdraft.decoding.loading.loader import load_tokenizer
from superdraft.decoding.text.tokenizer import Tokenizer
from superdraft.evaluation.cases.prompts import Prompt
from superdraft.server.errors import CommandError

MIN_TOKEN_LETTERS = 4
"""Shorter tokens with a leading space are too often beginnings of words (" th", " con") to count as words."""

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_ENDINGS = ("'s", "n't", "s", "es", "d", "ed", "ing", "ly")


class WordList:
    """Words in lower case.

    Args:
        words: words in any case.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._words = frozenset(_normal(word) for word in words)
        self._starts = frozenset(word[:length] for word in self._words for length in range(1, len(word) + 1))

    def __len__(self) -> int:
        return len(self._words)

    def __contains__(self, word: str) -> bool:
        """Whether a word is in the list, possibly with a regular ending: 's, n't, -s, -es, -ed, -ing, -ly."""
        word = _normal(word)
        return word in self._words or any(
            word.endswith(ending) and word.removesuffix(ending) in self._words for ending in _ENDINGS
        )

    def has_start(self, start: str) -> bool:
        """Whether a word of the list begins with `start`."""
        return _normal(start) in self._starts


def known_words(prompts: Sequence[Prompt], file: Path | None, model: str) -> WordList:
    """The words of the prompts and references, and those of a file or else of a language model's vocabulary.

    Args:
        prompts: prompts with references; a word that was cut counts as a whole.
        file: file of one word per line; None: the model's tokens of at least four letters after a space.
        model: language model, as for the server.

    Raises:
        CommandError: the file cannot be read or is empty.
        ModelLoadError: the tokenizer cannot be loaded.
    """
    texts = {word for prompt in prompts for word in _WORD.findall(prompt.text + prompt.continuation)}
    return WordList(texts.union(_words_of_vocabulary(model) if file is None else _words_of_file(file)))


def _words_of_file(file: Path) -> list[str]:
    try:
        words = file.read_text(encoding="utf-8").split()
    except OSError as error:
        raise CommandError(f"--words {file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise CommandError(f"--words {file} is not UTF-8 text; it must have one word per line.") from None
    if not words:
        raise CommandError(f"--words {file} holds no words; it must have one per line.")
    return words


def _words_of_vocabulary(model: str) -> Iterable[str]:
    for token in Tokenizer(load_tokenizer(model)).token_bytes:
        text = token.decode("utf-8", errors="replace")
        if text.startswith(" ") and len(text) > MIN_TOKEN_LETTERS and _WORD.fullmatch(text[1:]):
            yield text[1:]


def _normal(word: str) -> str:
    return word.lower().replace("\u2019", "'")
