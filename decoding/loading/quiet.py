"""Silencer for the messages and progress bars of transformers and its hub client."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import enable_progress_bars
from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress log messages, warnings and progress bars while transformers loads; restore the settings afterwards.

    Downloads from the hub keep their progress bar, because they may take minutes.
    """
    verbosity, hub_verbosity = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    progress_bars = transformers_logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers_logging.set_verbosity_error()
        hub_logging.set_verbosity(logging.ERROR)
        transformers_logging.disable_progress_bar()
        enable_progress_bars()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            hub_logging.set_verbosity(hub_verbosity)
            if progress_bars:
                transformers_logging.enable_progress_bar()
