"""Superposed Decoding: the method, and the engine that runs it on a causal language model.

The method's five lines are at the top of `engine/decode.py`, their formulas in `method/`.

The names below are all that a program needs to draft in its own process. Each is imported when it is first used, since
torch takes seconds to import and looking for a model on disk does not need it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superdraft.decoding.build import load_engine
    from superdraft.decoding.config import EngineConfig
    from superdraft.decoding.engine.engine import Engine
    from superdraft.decoding.errors import SuperdraftError
    from superdraft.decoding.outputs import GenerationOutput
    from superdraft.decoding.params import GenerationParams
    from superdraft.decoding.request import EngineRequest

__all__ = [
    "Engine",
    "EngineConfig",
    "EngineRequest",
    "GenerationOutput",
    "GenerationParams",
    "SuperdraftError",
    "load_engine",
]

_MODULES = {
    "Engine": "engine.engine",
    "EngineConfig": "config",
    "EngineRequest": "request",
    "GenerationOutput": "outputs",
    "GenerationParams": "params",
    "SuperdraftError": "errors",
    "load_engine": "build",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
