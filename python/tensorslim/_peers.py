"""Functions with the names, signatures and conventions of PyTorch and scikit-learn."""

from __future__ import annotations

import numbers
from typing import Any, Optional

import numpy as np

from ._arrays import borrow
from ._factor import factor, factor_many


def svd_lowrank(
    A: Any, q: Optional[int] = 6, niter: Optional[int] = 2, M: Any = None, *, seed: int = 0
) -> tuple[Any, Any, Any]:
    """Return the singular value decomposition of low rank of a matrix or a batch, as ``torch.svd_lowrank`` does.

    Parameters
    ----------
    A : array, shape (..., m, n)
        Of any kind and type that `factor` takes.
    q : int, optional
        The rank; at most ``min(m, n)`` are returned. Oversampling is added inside.
    niter : int, optional
        The number of power iterations.
    M : array, optional
        Subtracted from A; it is broadcast to the shape of A.
    seed : int
        One seed, one answer. (PyTorch takes the seed of its global generator.)

    Returns
    -------
    U, S, V : arrays of shapes (..., m, q), (..., q), (..., n, q)
        With ``A - M ~ U diag(S) V^T``, in float64 for float64 and float32 for other types. There are no gradients.
    """
    q = 6 if q is None else q
    niter = 2 if niter is None else niter
    m, n = A.shape[-2:]
    rule = {"rank": min(q, m, n), "power_iterations": niter, "seed": seed}
    if len(A.shape) == 2:
        base = None
        if M is not None:
            base = M.broadcast_to(A.shape) if hasattr(M, "broadcast_to") else np.broadcast_to(M, A.shape)
            # A mean that is broadcast visits its elements again and again, and the core takes no such strides.
            base = base.contiguous() if hasattr(base, "contiguous") else np.ascontiguousarray(base)
        found = factor(A, minus=base, **rule)
        return found.u, found.s, found.vt.T
    if M is not None:
        A = A - M
    like = borrow(A)[1]
    batch, flat = tuple(A.shape[:-2]), A.reshape((-1, m, n))
    parts = factor_many([flat[i] for i in range(flat.shape[0])], **rule)
    stacks = [np.stack([getattr(part._core, name) for part in parts]) for name in ("u", "s", "vt")]
    u, s, vt = (stack.reshape(batch + stack.shape[1:]) for stack in stacks)
    arrays = (u, s, np.ascontiguousarray(np.swapaxes(vt, -1, -2)))
    return arrays if like is None else tuple(like(array) for array in arrays)  # type: ignore[return-value]


def _seed(random_state: Any) -> int:
    """Return the seed that scikit-learn's conventions mean by `random_state`."""
    if random_state is None or random_state is np.random:
        random_state = np.random.mtrand._rand
    if isinstance(random_state, numbers.Integral) and int(random_state) >= 0:
        return int(random_state)
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(np.iinfo(np.int32).max))
    raise ValueError(
        f"random_state = {random_state!r} is not allowed; give None, an int of 0 or more, or a RandomState"
    )


def randomized_svd(
    M: Any,
    n_components: int,
    *,
    n_oversamples: int = 10,
    n_iter: Any = "auto",
    power_iteration_normalizer: str = "auto",
    transpose: Any = "auto",
    flip_sign: bool = True,
    random_state: Any = None,
    svd_lapack_driver: str = "gesdd",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a truncated randomized SVD, as ``sklearn.utils.extmath.randomized_svd`` does.

    Parameters
    ----------
    M : array or sparse matrix, shape (m, n)
        Sparse input is made dense. Integers are taken as float64.
    n_components : int
        The rank; at most ``min(m, n)`` are returned.
    n_oversamples : int
        Columns beyond the rank.
    n_iter : int or "auto"
        Power iterations; "auto" is 7 for a rank below a tenth of the shorter side, and 4 otherwise.
    power_iteration_normalizer : {"auto", "QR", "LU", "none"}
        Checked and of no effect: every product is orthonormalized.
    transpose : bool or "auto"
        Checked and of no effect: the core chooses the side.
    flip_sign : bool
        Make the entry of largest modulus in each column of U positive.
    random_state : int, RandomState or None
        None draws a seed from NumPy's global generator, as scikit-learn does.
    svd_lapack_driver : {"gesdd", "gesvd"}
        Checked and of no effect.

    Returns
    -------
    U, s, Vt : arrays of shapes (m, k), (k,), (k, n)
    """
    choices = (
        ("power_iteration_normalizer", power_iteration_normalizer, ("auto", "QR", "LU", "none")),
        ("svd_lapack_driver", svd_lapack_driver, ("gesdd", "gesvd")),
        ("transpose", transpose, ("auto", True, False)),
    )
    for name, value, allowed in choices:
        if value not in allowed:
            raise ValueError(f"{name} = {value!r} is not allowed; give one of {allowed}")
    array = np.asarray(M.toarray() if hasattr(M, "toarray") else M)
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    if n_iter == "auto":
        n_iter = 7 if n_components < 0.1 * min(array.shape) else 4
    found = factor(
        array,
        min(n_components, *array.shape),
        method="randomized",
        oversample=n_oversamples,
        power_iterations=n_iter,
        seed=_seed(random_state),
    )
    u, s, vt = (np.array(part) for part in (found.u, found.s, found.vt))
    if flip_sign:
        # The core gives the largest entry of each row of Vt a positive sign, scikit-learn that of each column of U.
        signs = np.sign(u[np.abs(u).argmax(axis=0), np.arange(len(s))])
        signs[signs == 0] = 1
        u *= signs
        vt *= signs[:, np.newaxis]
    return u, s, vt
