"""Python client for a Superdraft server. It needs no dependency except httpx."""

from superdraft.client.async_client import AsyncDraftsStream, AsyncSuperdraft
from superdraft.client.async_session import AsyncTypingSession
from superdraft.client.client import DraftsStream, Superdraft
from superdraft.client.completion import AsyncCompletion, Completion
from superdraft.client.models import (
    Draft,
    DraftsAnswer,
    FeedbackReceipt,
    Model,
    Replaces,
    Snapshot,
    SnapshotDraft,
    Timings,
    Usage,
)
from superdraft.client.retries import RetryPolicy
from superdraft.client.session import Cancel, Send, SessionOptions, TypingSession
from superdraft.client.suggestions import Display, Suggestion
from superdraft.client.telemetry import Report

__all__ = [
    "AsyncCompletion",
    "AsyncDraftsStream",
    "AsyncSuperdraft",
    "AsyncTypingSession",
    "Cancel",
    "Completion",
    "Display",
    "Draft",
    "DraftsAnswer",
    "DraftsStream",
    "FeedbackReceipt",
    "Model",
    "Replaces",
    "Report",
    "RetryPolicy",
    "Send",
    "SessionOptions",
    "Snapshot",
    "SnapshotDraft",
    "Suggestion",
    "Superdraft",
    "Timings",
    "TypingSession",
    "Usage",
]
