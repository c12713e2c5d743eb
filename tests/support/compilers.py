"""What torch.compile needs on a CPU."""

import os
import shutil

import pytest

needs_cpp_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler, and none is here"
)
