"""Hadamard transforms, rotations, orthonormal bases."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

from . import _core
from ._arrays import borrow, restore


def hadamard(x: Any, *, scale: float = 1.0, orthonormal: bool = False, inplace: bool = False) -> Any:
    """Multiply vectors along the last axis by the Hadamard matrix H, in natural order, in ``O(n log n)``.

    Parameters
    ----------
    x : array, shape (..., n)
        float16, bfloat16, float32 or float64; n is ``b 2^k`` with a base b that the core has (see `hadamard_nearest`).
    scale : float
        The factor of the result. It is part of the transform, so that halves are rounded once.
    orthonormal : bool
        Multiply by ``1 / sqrt(n)``, too: H is then orthogonal.
    inplace : bool
        Change `x` itself, and return it.

    Raises
    ------
    LengthError
        If there is no Hadamard matrix of order n.
    ValueError
        If `x` is read-only and to be changed.
    """
    if orthonormal:
        scale = scale / float(x.shape[-1]) ** 0.5
    given, like = borrow(x)
    if inplace:
        _core.hadamard_in_place(given, scale)
        return x
    return restore(_core.hadamard(given, scale, False), x, like)


def hadamard_transform(x: Any, scale: float = 1.0) -> Any:
    """Multiply vectors along the last axis by a Hadamard matrix, as fast-hadamard-transform does.

    A length that is no power of two is padded with zeros to the next one, and the first elements of the result are
    returned. Other lengths ``b 2^k`` have a matrix of their own: see `hadamard`.

    Parameters
    ----------
    x : array, shape (..., n)
    scale : float
        The factor of the result.

    Returns
    -------
    array, shape (..., n)
        Of the kind and the type of `x`.
    """
    given, like = borrow(x)
    return restore(_core.hadamard(given, scale, True), x, like)


def hadamard_nearest(n: int) -> tuple[Optional[int], Optional[int]]:
    """Return the longest length of at most `n`, and the shortest of at least `n`, that have a Hadamard matrix here."""
    return _core.hadamard_nearest(n)


class Rotation:
    """A random orthogonal matrix Q that is applied in ``O(n log n)``: ``y = Q x``.

    The bits of a seed are the same on every machine and in every later version.

    Parameters
    ----------
    dim : int
        The length of the vectors, n.
    seed : int
        The seed of the random signs.
    scheme : {"order", "blocks", "kac", "padded"}
        One transform of the vector; one of each block; four rounds, for every even length; or one with zeros behind,
        which takes every length and returns the next power of two.
    block : int, optional
        The length of a block, by default the largest power of two that divides n.

    Raises
    ------
    LengthError
        With the nearest lengths, if the scheme does not take n.
    """

    __slots__ = ("_block", "_core", "scheme")

    def __init__(self, dim: int, seed: int = 0, scheme: str = "order", *, block: Optional[int] = None) -> None:
        self._core = _core.Rotation(dim, seed, scheme, block)
        self.scheme = scheme
        self._block = block

    @classmethod
    def from_signs(cls, dim: int, signs: bytes, scheme: str = "order", *, block: Optional[int] = None) -> Rotation:
        """Make the rotation with the signs that `signs` gave.

        Raises
        ------
        LengthError, ShapeError, FormatError
            For a length that the scheme does not take, for too few or too many bytes, for bits behind the last sign.
        """
        made = cls.__new__(cls)
        made._core = _core.Rotation.from_signs(dim, scheme, block, bytes(signs))
        made.scheme = scheme
        made._block = block
        return made

    @staticmethod
    def nearest(dim: int, scheme: str = "order", *, block: Optional[int] = None) -> tuple[Optional[int], Optional[int]]:
        """Return the longest length of at most `dim`, and the shortest of at least `dim`, that the scheme takes."""
        return _core.Rotation.nearest(dim, scheme, block)

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return self._core.dim

    @property
    def output_dim(self) -> int:
        """The length of a rotated vector: that of a vector but for the scheme "padded"."""
        return self._core.output_dim

    @property
    def signs(self) -> bytes:
        """The signs, packed: bit ``i % 8`` of byte ``i // 8`` is set if sign i is -1."""
        return self._core.signs

    def apply(self, x: Any) -> Any:
        """Rotate vectors along the last axis: shape (..., dim) to (..., output_dim).

        Raises
        ------
        ShapeError
            Unless the last axis has `dim` elements.
        """
        given, like = borrow(x)
        return restore(self._core.apply(given, False), x, like)

    def inverse(self, y: Any) -> Any:
        """Rotate vectors back: shape (..., output_dim) to (..., dim).

        Raises
        ------
        ShapeError
            Unless the last axis has `output_dim` elements.
        """
        given, like = borrow(y)
        return restore(self._core.apply(given, True), y, like)

    def __reduce__(self) -> Any:
        return _rotation, (self.dim, self.signs, self.scheme, self._block)

    def __repr__(self) -> str:
        return f"<Rotation of {self.dim} elements, {self.scheme}>"


def _rotation(dim: int, signs: bytes, scheme: str, block: Optional[int]) -> Rotation:
    return Rotation.from_signs(dim, signs, scheme, block=block)


class Basis(NamedTuple):
    """An orthonormal basis.

    Attributes
    ----------
    q : array, shape (m, l)
        Orthonormal columns.
    r : array, shape (l, l)
        The upper triangular factor, with a diagonal that is not negative: ``y = q @ r``.
    algorithm : str
        The algorithm that gave it.
    condition_estimate : float
        An estimate of the condition number of the panel with columns of equal length; infinite for a singular one.
    """

    q: Any
    r: Any
    algorithm: str
    condition_estimate: float


def orthonormalize(y: Any) -> Basis:
    """Orthonormalize the columns of a matrix ``(m, l)``, m >= l, in f64 for float64 and f32 for other types.

    Whatever the rank of `y`, q has l orthonormal columns whose span contains that of `y`.

    Raises
    ------
    ShapeError, EmptyError, NotFiniteError, RangeError
        For a wide or an empty matrix, for NaN and infinities, for entries beyond the arithmetic.
    """
    given, like = borrow(y)
    q, r, algorithm, condition = _core.orthonormalize(given)
    if like is not None:
        q, r = like(q), like(r)
    return Basis(q, r, algorithm, condition)
