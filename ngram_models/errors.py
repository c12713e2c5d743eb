"""The exceptions of ngram_models.

::

    NgramModelError
    ├── NgramModelNotFoundError   nothing is found under that name or path
    ├── BrokenNgramModelError     it is found but incomplete, damaged or of an unknown format
    ├── TokenizerMismatchError    it was built for the token ids of another tokenizer
    └── NgramBuildError           a model cannot be built
        ├── CorpusError           a corpus file cannot be read
        └── BuildToolMissingError lmplz or build_binary, or what builds them, is not installed

Messages state what was wrong, where, and the remedy. They never quote the text of a corpus or a prompt.
"""


class NgramModelError(Exception):
    """Base of every exception that ngram_models raises on purpose."""


class NgramModelNotFoundError(NgramModelError):
    """No n-gram model is found under this name or path."""


class BrokenNgramModelError(NgramModelError):
    """The n-gram model is incomplete, damaged or of a format that this version does not know."""


class TokenizerMismatchError(NgramModelError):
    """The n-gram model was built for another tokenizer: its words are other tokens."""


class NgramBuildError(NgramModelError):
    """An n-gram model cannot be built."""


class CorpusError(NgramBuildError):
    """A corpus cannot be read."""


class BuildToolMissingError(NgramBuildError):
    """A program that building needs is not installed."""
