"""Settings and fixtures shared by all test folders."""

import functools
import os
import sys
from pathlib import Path

import httpx
import pytest
from support.waiting import PATIENCE_S

# Set before anything imports transformers: a test that contacts the hub must fail at once, not wait for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing, and other tests have the other cores

# What httpx waits where a test says nothing. Its own five seconds can pass on a crowded machine.
for phase in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, phase, PATIENCE_S)
# Every client reads the certificates of all authorities, which no test needs: once is enough.
httpx._transports.default.create_ssl_context = functools.cache(httpx._config.create_ssl_context)


@pytest.fixture(scope="session")
def default_gguf() -> Path:
    """The file of the real default model, fetched on the first run and then taken from the user's cache."""
    from superdraft.decoding.loading.catalogue import DEFAULT_MODEL
    from superdraft.decoding.loading.store import ModelStore

    return ModelStore().ensure(DEFAULT_MODEL)


@pytest.fixture(scope="session", autouse=True)
def _no_stages_on_a_busy_machine() -> None:
    """Loading a tiny model says nothing, however long it takes."""
    progress = sys.modules.get("superdraft.decoding.progress")
    if progress is not None:
        progress.FIRST_S = 60.0
