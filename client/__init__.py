"""Client of a Superdraft server: drafts over HTTP, with httpx alone."""

from superdraft.client.client import Superdraft
from superdraft.client.models import Completion, Draft, Timings, Usage

__all__ = ["Completion", "Draft", "Superdraft", "Timings", "Usage"]
