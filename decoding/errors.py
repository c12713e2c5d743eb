"""Exceptions of decoding.

::

    SuperdraftError
    ├── InvalidRequestError        the caller can fix the request (HTTP 400)
    │   └── PromptTooLongError     the prompt and the drafts do not fit in the context
    ├── ModelLoadError             a model cannot be used (command line: exit code 2)
    │   ├── UnknownModelError      there is no model of that name or path
    │   ├── BrokenModelError       the model is damaged, incomplete or unsafe to load
    │   ├── UnsupportedModelError  Superposed Decoding cannot run on the model
    │   └── NotEnoughMemoryError   the model does not fit in the free memory
    └── EngineError
        ├── SequenceFailedError    one sequence failed; the others continue (HTTP 500)
        ├── SupersededError        a newer request of the same typist replaced it (HTTP 499)
        └── EngineStoppedError     the engine is shutting down (HTTP 503)

Messages state what was wrong, the limit, the value and the remedy. They never quote prompt text.
"""


class SuperdraftError(Exception):
    """Base of every exception that decoding raises on purpose."""


class InvalidRequestError(SuperdraftError):
    """A parameter or the prompt is wrong.

    Args:
        message: what was wrong, the limit, the value and the remedy.
        param: name of the offending field, as the caller wrote it.
        code: short machine-readable reason.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class PromptTooLongError(InvalidRequestError):
    """The prompt and the tokens to generate do not fit in the model's context."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="prompt", code="context_length_exceeded")


class ModelLoadError(SuperdraftError):
    """A model cannot be used."""


class UnknownModelError(ModelLoadError):
    """There is no model of this name or path."""


class BrokenModelError(ModelLoadError):
    """The model is damaged, incomplete or unsafe to load."""


class UnsupportedModelError(ModelLoadError):
    """The model's architecture does not allow Superposed Decoding."""


class NotEnoughMemoryError(ModelLoadError):
    """The model does not fit in the free memory."""


class EngineError(SuperdraftError):
    """Something went wrong while decoding."""


class SequenceFailedError(EngineError):
    """One sequence failed (its scorer raised, or its logits were NaN); the others continue."""


class SupersededError(EngineError):
    """A newer request of the same typist replaced this one."""


class EngineStoppedError(EngineError):
    """The engine is shutting down and accepts no more requests."""
