"""Ranks: one budget shared among many layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence

import numpy as np

from . import _core
from ._core import rank_for_ratio, rank_saves_memory

__all__ = ["Allocation", "Layer", "allocate", "rank_for_ratio", "rank_saves_memory", "uniform"]


@dataclass
class Layer:
    """One matrix that shares a budget.

    Attributes
    ----------
    shape : (int, int)
        Rows and columns.
    spectrum : sequence of float
        The singular values, nonincreasing, of W or of its outputs; they may stop early.
    norm_squared : float
        The squared norm of the matrix that has this spectrum.
    dtype : str
        ``"f16"``, ``"bf16"``, ``"f32"`` or ``"f64"``, for a budget in bytes.
    weight : float
        The factor by which its loss counts. ``1 / norm_squared`` makes losses relative.
    floor, cap : int
        The least and the largest rank allowed.
    protected : bool
        Whether the matrix must stay whole. Its size counts all the same.
    """

    shape: tuple[int, int]
    spectrum: Sequence[float]
    norm_squared: float
    dtype: str = "f32"
    weight: float = 1.0
    floor: int = 1
    cap: Optional[int] = None
    protected: bool = False


@dataclass
class Allocation:
    """The result of `allocate`.

    Attributes
    ----------
    ranks : list of int or None
        The rank of each layer; None for one that stays whole.
    total : int
        The cost of all layers together.
    loss, bound : float
        The weighted loss, and a lower bound: no allocation within the budget loses less.
    """

    ranks: list[Optional[int]]
    total: int
    loss: float
    bound: float


def allocate(layers: Sequence[Layer], budget: int, *, unit: str = "parameters", align: int = 1) -> Allocation:
    """Share a budget among layers so that the weighted loss is least.

    Parameters
    ----------
    layers : sequence of Layer
    budget : int
        The most that all layers may cost together.
    unit : {"parameters", "bytes", "flops"}
        The unit of the budget: numbers, bytes, or multiplications and additions per sample.
    align : int
        The number that divides all ranks.

    Raises
    ------
    OptionError, EmptyError
        For a budget below the least cost, for numbers that are not finite and nonnegative, without layers.
    """
    return _share(layers, budget, unit, align, alike=False)


def uniform(layers: Sequence[Layer], budget: int, *, unit: str = "parameters", align: int = 1) -> Allocation:
    """Share a budget so that all layers are reduced alike, to the same part of what they have.

    This is the safe choice where the losses of different layers have no common unit. Parameters and errors are those
    of `allocate`; the bound is 0.
    """
    return _share(layers, budget, unit, align, alike=True)


def _share(layers: Sequence[Layer], budget: int, unit: str, align: int, *, alike: bool) -> Allocation:
    for layer in layers:
        layer.spectrum = np.asarray(layer.spectrum, dtype=np.float64).tolist()
    return Allocation(*_core.allocate(list(layers), budget, unit, align, alike))
