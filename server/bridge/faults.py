"""Faults as errors of the requests that they ended."""

from typing import Any, Final

import structlog

from superdraft.decoding.errors import SequenceFailedError, SuperdraftError

FAULT_MESSAGE: Final = "The engine failed on this request; the server's log says why."
STEP_FAULT_MESSAGE: Final = (
    "The engine failed in a step that this request shared with others; the server's log says why. Send it again."
)

log = structlog.get_logger(__name__)


def request_error(fault: Exception, **context: Any) -> SuperdraftError:
    """The error that one request ends with: an error that decoding raised on purpose, or else a logged fault.

    Args:
        fault: what was raised. The client does not see the message of an unexpected exception: it may quote a prompt.
        context: fields of the log line.
    """
    return fault if isinstance(fault, SuperdraftError) else logged_fault(fault, **context)


def logged_fault(fault: Exception, **context: Any) -> SequenceFailedError:
    """Log an exception with its traceback; returns the error that the requests it touched end with."""
    log.error("engine_fault", exc_info=fault, **context)
    return SequenceFailedError(FAULT_MESSAGE)
