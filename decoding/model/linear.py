"""Linear layers, and the seam for formats that hold their weights in fewer bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Linear(Protocol):
    """A linear layer in any weight format."""

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., K] -> [..., N], in the type of `rows`."""


class DenseLinear:
    """y = x W^T + b, for weights in any floating-point type.

    Args:
        weight: shape [N, K].
        bias: shape [N], or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight: Tensor | None = weight
        self._parts: tuple[nn.Linear, ...] = ()
        self.bias = bias

    @classmethod
    def joined(cls, parts: Sequence[nn.Linear]) -> "DenseLinear":
        """Several layers that read the same input, as one.

        Their weights are joined when the weight is first asked for, and become views of it, so that no weight is stored
        twice.
        """
        if len(parts) == 1:
            return cls(parts[0].weight, parts[0].bias)
        layer = cls(parts[0].weight, None if parts[0].bias is None else torch.cat([part.bias for part in parts]))
        layer._weight, layer._parts = None, tuple(parts)
        return layer

    @property
    def weight(self) -> Tensor:
        """Shape [N, K]."""
        if self._weight is None:
            self._weight = torch.cat([part.weight for part in self._parts])
            views = torch.split(self._weight, [part.out_features for part in self._parts])
            for part, view in zip(self._parts, views, strict=True):
                part.weight = nn.Parameter(view, requires_grad=False)
            self._parts = ()
        return self._weight

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The weight in one or more pieces that lie below one another, each [N', K]. Joins nothing."""
        return (self._weight,) if self._weight is not None else tuple(part.weight for part in self._parts)

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        return nn.functional.linear(rows, self.weight, self.bias)


class Conversion(Protocol):
    """Converts a dense layer to another weight format."""

    def __call__(self, linear: DenseLinear, *, is_head: bool = False) -> Linear:
        """The layer in the format that suits it and its device; `linear` itself if its shape rules the format out.

        Args:
            linear: the layer, on the device where it will run.
            is_head: it is the output head, whose rounding errors go straight into the logits.

        Raises:
            UnsupportedModelError: the format does not work on this device.
        """


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How the linear layers of a model hold their weights.

    Attributes:
        name: what users call it.
        dtype: the type in which the model is loaded, and of everything that is not a linear layer.
        convert: converts each linear layer of the loaded model; None: they stay dense.
    """

    name: str
    dtype: torch.dtype
    convert: Conversion | None = None


class LinearModule(nn.Module):
    """A converted layer as a module, for models that run through transformers' own forward.

    Args:
        linear: the converted layer.
        dense: the layer it was made from. It is not kept.
    """

    def __init__(self, linear: Linear, dense: DenseLinear) -> None:
        super().__init__()
        # Some models look at the shape and type of a layer's weight. These have the same, without the memory.
        self.weight = torch.zeros((), dtype=dense.weight.dtype).expand(dense.weight.shape)
        self.bias = dense.bias
        self._linear = linear

    def forward(self, rows: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        return self._linear(rows)


def convert_modules(model: nn.Module, head: nn.Module | None, convert: Conversion) -> None:
    """Replace every linear layer of a model by its converted form, in place.

    Args:
        model: any architecture whose linear layers are `nn.Linear`; layers of other types stay as they are.
        head: the output head, one of these layers.
        convert: the conversion.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                dense = DenseLinear(child.weight, child.bias)
                setattr(parent, name, LinearModule(convert(dense, is_head=child is head), dense))


def release_weights(model: nn.Module, embedding: nn.Module) -> None:
    """Free the weights of all linear layers; the model's own forward no longer works.

    Args:
        model: the model.
        embedding: its weight stays, which may be the output head's too.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight is not embedding.weight:
            module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)
