"""Superdraft's home folder: the user's own n-gram models and KenLM's programs."""

import os
from pathlib import Path

import platformdirs


def superdraft_home(home: Path | None = None) -> Path:
    """The folder `home` if given, else `$SUPERDRAFT_HOME`, else the user's cache folder for superdraft."""
    if home is not None:
        return home
    variable = os.environ.get("SUPERDRAFT_HOME")
    return Path(variable).expanduser() if variable else Path(platformdirs.user_cache_dir("superdraft"))


def user_models_folder(home: Path | None = None) -> Path:
    """Folder of the user's own models, with one sub-folder per model."""
    return superdraft_home(home) / "ngram"


def tools_folder(home: Path | None = None) -> Path:
    """Folder into which `lmplz` and `build_binary` are installed."""
    return superdraft_home(home) / "bin"
