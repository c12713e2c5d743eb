"""Exceptions of ngram_models.

::

    NgramModelError
    ├── NgramModelNotFoundError   no model has that name or path
    ├── BrokenNgramModelError     the model is incomplete, damaged or in an unknown format
    ├── TokenizerMismatchError    the model was built for another tokenizer
    └── NgramBuildError           the model cannot be built
        ├── CorpusError           the corpus is missing, unreadable or empty
        └── BuildToolMissingError lmplz, build_binary or what compiles them is not installed

Messages say what is wrong, where, and what to do about it. They never quote the text of a corpus or a prompt.
"""


class NgramModelError(Exception):
    """Base class of the exceptions of ngram_models."""


class NgramModelNotFoundError(NgramModelError):
    """No n-gram model has this name or path."""


class BrokenNgramModelError(NgramModelError):
    """The n-gram model is incomplete, damaged or in a format that this version does not know."""


class TokenizerMismatchError(NgramModelError):
    """The n-gram model was built for the token ids of another tokenizer."""


class NgramBuildError(NgramModelError):
    """The n-gram model cannot be built."""


class CorpusError(NgramBuildError):
    """The corpus is missing, unreadable or empty, or does not fit the tokenizer."""


class BuildToolMissingError(NgramBuildError):
    """A program that is needed to build models is not installed."""
