"""Weights on the Hugging Face hub: fetched with progress, and looked up in the hub's own cache."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils.tqdm import tqdm

from superdraft.decoding.errors import ModelLoadError
from superdraft.decoding.progress import Stage, stage

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_REASON_LENGTH = 300


def fetch_weights(hub_id: str) -> None:
    """Fetch a model's safetensors weights into the hub's cache, unless they are there.

    What the repository does not have is left to who reads it.

    Args:
        hub_id: `owner/name`. The newest revision is fetched.

    Raises:
        Exception: whatever the hub's client and the network raise.
    """
    with contextlib.suppress(EntryNotFoundError):
        _fetch(hub_id, _WEIGHTS)
        return
    with contextlib.suppress(EntryNotFoundError):
        for name in _shards(Path(hf_hub_download(hub_id, _INDEX))):
            _fetch(hub_id, name)


def fetch_file(hub_id: str, name: str, folder: Path) -> Path:
    """Download a file from the hub. The user's hub settings (address, mirror, token, proxy) apply.

    Args:
        hub_id: `owner/name`.
        name: the file's path in the repository.
        folder: an existing, empty folder.

    Returns:
        The path of the downloaded file.

    Raises:
        ModelLoadError: the hub cannot be reached, or does not provide the file.
    """
    try:
        return _fetch(hub_id, name, local_dir=folder)
    except Exception as error:  # whatever the hub's client and the network raise
        reason = " ".join(str(error).split())[:_REASON_LENGTH] or "no reason given"
        raise ModelLoadError(
            f"cannot fetch {name} of {hub_id} from {constants.ENDPOINT}: {type(error).__name__}: {reason} Check the "
            "network and the variables HF_ENDPOINT and HF_HUB_OFFLINE; or download the file some other way and pass "
            f"its path: --model {name}"
        ) from error


def cached_bytes(hub_id: str) -> int | None:
    """Size of a model's weights in the hub's cache; None if they are not all there. Asks no network."""
    names = [_WEIGHTS]
    if _cached(hub_id, _WEIGHTS) is None:
        index = _cached(hub_id, _INDEX)
        names = [] if index is None else _shards(index)
    files = [_cached(hub_id, name) for name in names]
    present = [file for file in files if file is not None]
    return sum(file.stat().st_size for file in present) if present and len(present) == len(files) else None


def cached_folder(hub_id: str) -> Path | None:
    """The folder of a model in the hub's cache; None if its weights are not all there. Asks no network."""
    config = _cached(hub_id, "config.json")
    return None if config is None or cached_bytes(hub_id) is None else config.parent


def _cached(hub_id: str, name: str) -> Path | None:
    found = try_to_load_from_cache(hub_id, name)
    return Path(found) if isinstance(found, str) else None


def _shards(index: Path) -> list[str]:
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def _fetch(hub_id: str, name: str, **options: Any) -> Path:
    with stage(f"Fetching {name} of {hub_id}") as current:
        return Path(hf_hub_download(hub_id, name, tqdm_class=_bar_of(current), **options))


def _bar_of(current: Stage) -> type[tqdm]:
    """A progress bar that draws nothing and passes its updates to the stage."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options |= {"file": io.StringIO(), "disable": False}
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]
            current.total = None if self.total is None else int(self.total)
            current.advance(self.n)  # of an earlier, interrupted download

        def update(self, n: float | None = 1) -> None:
            current.advance(n or 0)
            super().update(n)

    return Bar
