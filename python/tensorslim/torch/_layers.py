"""Layers that are two thin ones, and the conversion of a layer to such."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import nn

from .._calibration import Calibration
from .._factor import Factors, factor


class SlimLinear(nn.Module):
    """A linear layer whose weight is ``up @ down``: ``y = (x down^T) up^T + bias``.

    Parameters
    ----------
    in_features, out_features, rank : int
        The sizes n and m, and the rank k of the weight.
    bias : bool
        Whether there is a bias, which `up` holds.

    Attributes
    ----------
    down : torch.nn.Linear
        n inputs, k outputs, no bias.
    up : torch.nn.Linear
        k inputs, m outputs.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    @classmethod
    def from_factors(
        cls, factors: Factors, bias: Optional[torch.Tensor], *, dtype: torch.dtype, device: Any = "cpu"
    ) -> SlimLinear:
        """Make the layer of factors of its weight; the singular values are shared evenly by both sides."""
        m, n = factors.shape
        layer = cls(n, m, factors.rank, bias is not None, device="meta", dtype=dtype).to_empty(device=device)
        _fill(layer, *factors.split(), bias)
        return layer

    @property
    def weight(self) -> torch.Tensor:
        """The product ``up @ down``, shape (m, n), formed anew each time."""
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> Optional[torch.Tensor]:
        """The bias of `up`."""
        return self.up.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class SlimConv2d(nn.Module):
    """A convolution of k filters, and one of 1 by 1 that mixes them: the weight (m, in * kh * kw) has rank k.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, rank
        The sizes, and the rank k.
    stride, padding, dilation, bias, padding_mode
        As those of ``torch.nn.Conv2d``; there is one group.

    Attributes
    ----------
    down : torch.nn.Conv2d
        k filters of the kernel's size, no bias.
    up : torch.nn.Conv2d
        m filters of 1 by 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        rank: int,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.rank = in_channels, out_channels, rank
        at = {"device": device, "dtype": dtype}
        self.down = nn.Conv2d(
            in_channels, rank, kernel_size, stride, padding, dilation, bias=False, padding_mode=padding_mode, **at
        )
        self.up = nn.Conv2d(rank, out_channels, 1, bias=bias, **at)

    @classmethod
    def from_factors(cls, factors: Factors, conv: nn.Conv2d) -> SlimConv2d:
        """Make the layer of factors of the weight of `conv`, with its other parameters."""
        layer = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, factors.rank, conv.stride, conv.padding,
            conv.dilation, conv.bias is not None, conv.padding_mode, "meta", conv.weight.dtype,
        ).to_empty(device=conv.weight.device)  # fmt: skip
        _fill(layer, *factors.split(), conv.bias)
        return layer

    @property
    def weight(self) -> torch.Tensor:
        """The weight (m, in, kh, kw), formed anew each time."""
        return torch.einsum("mk,kchw->mchw", self.up.weight[:, :, 0, 0], self.down.weight)

    @property
    def bias(self) -> Optional[torch.Tensor]:
        """The bias of `up`."""
        return self.up.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x))

    def extra_repr(self) -> str:
        return f"in_channels={self.in_channels}, out_channels={self.out_channels}, rank={self.rank}"


def _fill(layer: Any, up: torch.Tensor, down: torch.Tensor, bias: Optional[torch.Tensor]) -> None:
    with torch.no_grad():
        layer.up.weight.copy_(up.reshape(layer.up.weight.shape))
        layer.down.weight.copy_(down.reshape(layer.down.weight.shape))
        if bias is not None:
            layer.up.bias.copy_(bias)


def is_transposed(layer: nn.Module) -> bool:
    """Return whether a layer is GPT-2's ``Conv1D``: linear, with a weight of inputs by outputs."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf") and getattr(layer, "weight", None) is not None


def is_convertible(layer: nn.Module) -> bool:
    """Return whether `convert_layer_to_slim` takes a layer: ``Linear``, ``Conv2d`` of one group, GPT-2's ``Conv1D``."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1
    return type(layer) is nn.Linear or is_transposed(layer)


def matrix_of(layer: nn.Module) -> torch.Tensor:
    """Return the weight of a layer as a matrix of outputs by inputs, on the CPU, without a copy where it is there.

    Raises
    ------
    TypeError
        For a layer of another kind.
    """
    if not is_convertible(layer):
        kinds = "give a Linear, a Conv2d of one group or GPT-2's Conv1D"
        raise TypeError(f"a layer of type {type(layer).__name__} is not converted; {kinds}")
    weight = layer.weight.detach().cpu()
    if is_transposed(layer):
        return weight.T
    return weight.flatten(1) if weight.dim() > 2 else weight


def slim_from_factors(layer: nn.Module, factors: Factors) -> nn.Module:
    """Return the slim layer that replaces `layer`, on its device, in its type and mode."""
    if isinstance(layer, nn.Conv2d):
        made: nn.Module = SlimConv2d.from_factors(factors, layer)
    else:
        bias = None if layer.bias is None else layer.bias.detach()
        made = SlimLinear.from_factors(factors, bias, dtype=layer.weight.dtype, device=layer.weight.device)
    for parameter in made.parameters():
        parameter.requires_grad_(layer.weight.requires_grad)
    return made.train(layer.training)


def convert_layer_to_slim(
    layer: nn.Module,
    rank: Optional[int] = None,
    *,
    ratio: Optional[float] = None,
    quality: Optional[float] = None,
    calibration: Optional[Calibration] = None,
    keep_larger: bool = True,
    **options: Any,
) -> nn.Module:
    """Return a layer of two thin ones in place of a ``Linear``, a ``Conv2d`` or GPT-2's ``Conv1D``.

    Parameters
    ----------
    layer : torch.nn.Module
        It is not changed.
    rank, ratio, quality
        The rule for the rank; see `tensorslim.factor`. Without a calibration, `quality` is the cosine between the
        weights before and after.
    calibration : Calibration, optional
        Statistics of the layer's inputs (of patches, for a convolution).
    keep_larger : bool
        Return `layer` itself where the factors would have as many numbers as the weight, or more.
    **options
        Other options of `tensorslim.factor`.

    Raises
    ------
    TypeError
        For a layer of another kind, or unless there is one rule.
    tensorslim.Error
        Those of `tensorslim.factor`.
    """
    matrix = matrix_of(layer)
    factors = factor(matrix, **rule_of(rank, ratio, quality, calibration), calibration=calibration, **options)
    report = factors.report
    if keep_larger and report["params_after"] >= report["params_before"]:
        return layer
    return slim_from_factors(layer, factors)


def rule_of(rank: Optional[int], ratio: Optional[float], quality: Optional[float], calibration: Any) -> dict[str, Any]:
    """Return the rule for `tensorslim.factor`. Without inputs, a cosine q of the weights is the energy q^2."""
    if quality is not None and calibration is None:
        return {"rank": rank, "ratio": ratio, "energy": quality * quality}
    return {"rank": rank, "ratio": ratio, "quality": quality}
