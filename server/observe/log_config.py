"""Log configuration: one format for all records, including uvicorn's. Prompt text is never logged."""

import logging
import sys
import traceback
from types import TracebackType
from typing import Any, Literal

import structlog
from structlog.typing import EventDict

from superdraft.decoding.errors import SuperdraftError
from superdraft.ngram_models.errors import NgramModelError

# Exceptions whose messages hold no text of a request. Others may quote it, as KeyError does.
_TEXT_FREE = (SuperdraftError, NgramModelError, OSError, MemoryError)
_WITHHELD = "(message withheld: it may quote a prompt)"


def configure_logging(level: str, log_format: Literal["console", "json"]) -> None:
    """Send structlog's and the standard library's records to stderr, as coloured lines or JSON lines."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _without_details_of_asyncio],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.ExceptionRenderer(_traceback_of),
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    for name in ("asyncio", "httpx", "filelock", "torch", "urllib3", "uvicorn.error"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


def _without_details_of_asyncio(_logger: Any, _method: str, event_dict: EventDict) -> EventDict:
    """Keep only the first line of asyncio's messages: the others show the failed task, and with it the exception."""
    if event_dict.get("logger") == "asyncio":
        event_dict["event"] = str(event_dict["event"]).partition("\n")[0]
    return event_dict


def _traceback_of(exc_info: tuple[type[BaseException], BaseException, TracebackType | None]) -> str:
    return describe_exception(exc_info[1])


def describe_exception(error: BaseException) -> str:
    """A traceback, causes first, with messages only of exceptions that never quote a request."""
    parts: list[str] = []
    link: BaseException | None = error
    while link is not None and len(parts) < 10:  # causes may form a cycle
        parts.append(_describe_one(link))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\n\nwhich led to:\n\n".join(reversed(parts))


def _describe_one(error: BaseException) -> str:
    message = str(error) if isinstance(error, _TEXT_FREE) else _WITHHELD
    own = "".join([*traceback.format_tb(error.__traceback__), f"{type(error).__qualname__}: {message}"])
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return "\n\n".join([own, *(f"in the group:\n{describe_exception(each)}" for each in inner)])
