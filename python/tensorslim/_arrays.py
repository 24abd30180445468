"""Which framework an array comes from, and how a result gets back into it."""

from __future__ import annotations

import sys
from typing import Any, Callable, Optional

import numpy as np

Converter = Callable[[np.ndarray], Any]


def is_torch(x: Any) -> bool:
    """Return whether `x` is a tensor of PyTorch, without importing it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _to_torch(array: np.ndarray) -> Any:
    return sys.modules["torch"].from_dlpack(array)


def _capsule(x: Any) -> Any:
    return sys.modules["torch"].utils.dlpack.to_dlpack(x)


def borrow(x: Any) -> tuple[Any, Optional[Converter]]:
    """Return the array that the core takes, and the function that makes results of the caller's kind.

    The function takes a writable array of NumPy and shares its memory. It is None where the results are NumPy's.
    """
    if type(x) is np.ndarray:
        return x, None
    if is_torch(x):
        x = (x.detach() if x.requires_grad else x).resolve_neg()
        # The capsule of PyTorch's own function costs a tenth of its method, which the core calls for other tensors.
        plain = x.is_cpu and x.layout == sys.modules["torch"].strided and not x.is_conj()
        return (_capsule(x) if plain else x), _to_torch
    if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack__"):
        return np.asarray(x), None
    namespace = getattr(x, "__array_namespace__", None)
    return x, None if namespace is None else namespace().from_dlpack


def restore(array: np.ndarray, x: Any, like: Optional[Converter]) -> Any:
    """Give an array that the core made of `x` the element type of `x`: halves come as their 16 bits."""
    if array.dtype != np.uint16:
        return array if like is None else like(array)
    if is_torch(x):
        return _to_torch(array.view(np.int16)).view(x.dtype)
    if "bfloat16" not in str(x.dtype):
        array = array.view(np.float16)
        return array if like is None else like(array)
    import ml_dtypes

    array = array.view(ml_dtypes.bfloat16)
    return array if like is None else x.__array_namespace__().asarray(array)
