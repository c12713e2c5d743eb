"""Which way to multiply a few rows by a weight matrix is the fastest, found by trying them on the GPU itself.

A product of one row with a matrix is all reading. Libraries for matrices are made for more rows than that, and do not
always read as fast as the memory can give.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from superdraft.decoding.layer_parts import allow_many_compilations
from superdraft.decoding.quantisation import DenseLinear
from superdraft.decoding.trials import TIMED_BYTES, Comparison, Timer, Trial, graph_time_ms, run_trials

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Rows [R, K], weight [N, K] and bias [N] or None -> [R, N]."""

_BLOCK_OUTPUTS = 4096


def matrix_vector(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product of a matrix and a vector; for one row only."""
    vector = rows.view(-1) if rows.shape[0] == 1 else rows
    product = torch.mv(weight, vector) if bias is None else torch.addmv(bias, weight, vector)
    return product.unsqueeze(0)


def compiled_sums(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A sum for each number of the result, in a kernel made by torch.compile."""
    return _compiled_sums()(rows, weight, bias)


def _sums(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = (rows.unsqueeze(1).float() * weight.float()).sum(-1)
    return (product if bias is None else product + bias).to(rows.dtype)


@functools.cache
def _compiled_sums() -> Product:
    allow_many_compilations()
    return torch.compile(_sums, fullgraph=True, dynamic=False)


CANDIDATES: dict[str, Product] = {
    "linear": nn.functional.linear,
    "matrix and vector": matrix_vector,
    "compiled sums": compiled_sums,
}


@dataclass(frozen=True, slots=True)
class ProductChoice:
    """The fastest candidate, and all that was tried for it."""

    name: str
    product: Product
    trials: tuple[Trial, ...] = ()


class ChosenLinear(DenseLinear):
    """A dense layer that takes another product for some numbers of rows.

    Args:
        linear: the layer.
    """

    def __init__(self, linear: DenseLinear) -> None:
        super().__init__(linear.weight, linear.bias)
        self.products: dict[int, Product] = {}

    def __call__(self, rows: Tensor) -> Tensor:
        """[R, K] -> [R, N]."""
        return self.products.get(rows.shape[0], nn.functional.linear)(rows, self.weight, self.bias)


@torch.inference_mode()
def choose_product(
    layers: Sequence[DenseLinear],
    num_rows: int,
    *,
    candidates: Mapping[str, Product] | None = None,
    timer: Timer = graph_time_ms,
) -> ProductChoice:
    """The fastest product for layers of one shape, tried on their own weights.

    Away from a GPU nothing is tried unless candidates are given: it is torch's linear.

    Args:
        layers: of the model, all with weights of the same shape; enough of them are read in turn.
        num_rows: R.
        candidates: by name; None: all there are.
        timer: measures calls for several layers.

    Raises:
        UnsupportedModelError: none of them is right.
    """
    weight = layers[0].weight
    device, (num_outputs, num_inputs) = weight.device, weight.shape
    if candidates is None and device.type != "cuda":
        return ProductChoice("linear", nn.functional.linear)
    candidates = CANDIDATES if candidates is None else candidates
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.randn(num_rows, num_inputs, generator=generator, device=device).to(weight.dtype)
    timed = [(rows, layer.weight, layer.bias) for layer in layers[: TIMED_BYTES // weight.nbytes + 1]]
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        name, trials = run_trials(
            f"products of {num_rows} rows with {num_outputs} x {num_inputs} weights in {weight.dtype} on {device}",
            candidates,
            [Comparison(timed[0], _reference(*timed[0]))],
            timed,
            timer,
        )
    return ProductChoice(name, candidates[name], trials)


def _reference(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Plain arithmetic in float32, or in float64 if that is what comes in; block by block, since heads are large."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    product = torch.cat([rows.to(exact) @ part.to(exact).t() for part in torch.split(weight, _BLOCK_OUTPUTS)], dim=1)
    return product if bias is None else product + bias
