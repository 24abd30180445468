"""Certified low-rank factorization of neural-network weights.

A weight goes in (NumPy, PyTorch or anything with ``__dlpack__``; float16, bfloat16, float32 or float64; any strides,
without a copy), and factors ``U diag(s) Vt`` come out, with a certificate of how far they are from it.

* `factor`, `factor_many`, `plan`, `Factors`: factorizations.
* `Calibration`: statistics of the inputs of a layer, which weight the error.
* `allocate`, `uniform`, `Layer`, `Allocation`: one budget for many layers.
* `hadamard`, `hadamard_transform`, `Rotation`, `orthonormalize`: transforms and bases.
* `svd_lowrank`, `randomized_svd`: the functions of PyTorch and scikit-learn, by their own names.
* `tensorslim.torch`: compress models of PyTorch (imported on its own; needs torch).

Python's lock is free while the core works, and many threads of Python may call it at once. Arrays must not be changed
while a call reads them. Work is spread over one pool of threads (`set_num_threads`).
"""

from . import _errors
from ._calibration import Calibration
from ._core import __version__, get_num_threads, set_num_threads
from ._errors import *  # noqa: F403
from ._factor import Agreement, Factors, Plan, Side, basis, factor, factor_many, plan
from ._peers import randomized_svd, svd_lowrank
from ._rank import Allocation, Layer, allocate, rank_for_ratio, rank_saves_memory, uniform
from ._transforms import Basis, Rotation, hadamard, hadamard_nearest, hadamard_transform, orthonormalize

__all__ = [
    "Agreement",
    "Allocation",
    "Basis",
    "Calibration",
    "Factors",
    "Layer",
    "Plan",
    "Rotation",
    "Side",
    "__version__",
    "allocate",
    "basis",
    "factor",
    "factor_many",
    "get_num_threads",
    "hadamard",
    "hadamard_nearest",
    "hadamard_transform",
    "orthonormalize",
    "plan",
    "randomized_svd",
    "rank_for_ratio",
    "rank_saves_memory",
    "set_num_threads",
    "svd_lowrank",
    "uniform",
    *_errors.__all__,
]
