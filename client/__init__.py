"""Client of a Superdraft server: drafts over HTTP, with httpx alone."""

from superdraft.client.async_client import AsyncDraftsStream, AsyncSuperdraft
from superdraft.client.client import DraftsStream, Superdraft
from superdraft.client.completion import AsyncCompletion, Completion
from superdraft.client.models import (
    Draft,
    DraftsAnswer,
    FeedbackReceipt,
    Model,
    Snapshot,
    SnapshotDraft,
    Timings,
    Usage,
)
from superdraft.client.retries import RetryPolicy

__all__ = [
    "AsyncCompletion",
    "AsyncDraftsStream",
    "AsyncSuperdraft",
    "Completion",
    "Draft",
    "DraftsAnswer",
    "DraftsStream",
    "FeedbackReceipt",
    "Model",
    "RetryPolicy",
    "Snapshot",
    "SnapshotDraft",
    "Superdraft",
    "Timings",
    "Usage",
]
