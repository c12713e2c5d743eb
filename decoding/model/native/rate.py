"""How fast the kernels take in weights on this machine, measured: most of a decode step's time is this."""

import copy
import statistics
import time

import torch

from superdraft.decoding.model.native.linear import NativeLinear, address
from superdraft.decoding.model.native.structs import LinearStruct

_NUM_OUTPUTS, _NUM_INPUTS = 4096, 2048
_COPIES = 24  # of 5 MB each: more than the caches of most processors hold
_REPEATS = 9


def weight_rate(num_threads: int) -> float:
    """Bytes of 4-bit weights per second in products with one row; takes less than a second where nothing else runs.

    Args:
        num_threads: torch is left with the number that it had.

    Raises:
        KernelsUnavailableError: there are no kernels for this machine.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        first = NativeLinear(torch.linspace(-1, 1, _NUM_INPUTS).expand(_NUM_OUTPUTS, -1), None, bits=4)
        layers = [_copy(first) for _ in range(_COPIES)]
        row = torch.ones(1, _NUM_INPUTS)
        times = []
        for _ in range(_REPEATS):
            begin = time.perf_counter()
            for layer in layers:
                layer(row)
            times.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(before)
    return sum(layer._panels.nbytes for layer in layers) / statistics.median(times)


def _copy(linear: NativeLinear) -> NativeLinear:
    """The layer again, with weights at another place in memory."""
    other = copy.copy(linear)
    other._panels = linear._panels.clone()
    other.struct = LinearStruct(address(other._panels), None, None, *linear.shape, linear.struct.bits)
    return other
