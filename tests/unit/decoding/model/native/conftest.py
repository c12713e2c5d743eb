"""Each kernel variant that this processor can run."""

import pytest

from superdraft.decoding.model.native import decoder as native_decoder
from superdraft.decoding.model.native import linear as native_linear
from superdraft.decoding.model.native import matrix as native_matrix
from superdraft.decoding.model.native.library import VARIANTS, load_kernels, supported_variants


@pytest.fixture(params=VARIANTS)
def _variant(request, monkeypatch):
    if request.param not in supported_variants():
        pytest.skip(f"this processor cannot run {request.param}")
    for module in (native_linear, native_matrix, native_decoder):
        monkeypatch.setattr(module, "load_kernels", lambda: load_kernels(request.param))
