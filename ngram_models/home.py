"""Where a user's own n-gram models and KenLM's programs are kept."""

import os
from pathlib import Path

import platformdirs


def superdraft_home(home: Path | None = None) -> Path:
    """`home` if given, else `$SUPERDRAFT_HOME`, else the user's cache folder for superdraft."""
    if home is not None:
        return home
    variable = os.environ.get("SUPERDRAFT_HOME")
    return Path(variable).expanduser() if variable else Path(platformdirs.user_cache_dir("superdraft"))


def user_models_folder(home: Path | None = None) -> Path:
    """The folder that holds one folder a model."""
    return superdraft_home(home) / "ngram"


def tools_folder(home: Path | None = None) -> Path:
    """The folder that holds `lmplz` and `build_binary`."""
    return superdraft_home(home) / "bin"
