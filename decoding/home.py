"""The folder for what is fetched or built once: models and kernels."""

import os
from pathlib import Path

import platformdirs


def superdraft_home(home: Path | None = None) -> Path:
    """The folder: `home` if given, else `$SUPERDRAFT_HOME`, else the user's cache folder."""
    if home is not None:
        return home.expanduser()
    from_environment = os.environ.get("SUPERDRAFT_HOME")
    if from_environment:
        return Path(from_environment).expanduser()
    return platformdirs.user_cache_path("superdraft")
