"""What torch.compile needs on a CPU."""

import os
import shutil
from collections.abc import Callable
from typing import TypeVar

import pytest

_Test = TypeVar("_Test", bound=Callable)
_skip = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler, and none is here"
)
_calm = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # torch's own use


def needs_cpp_compiler(test: _Test) -> _Test:
    """Marks a test that compiles for the CPU."""
    return _skip(_calm(test))
