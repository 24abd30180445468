"""Statistics of the inputs of a layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _core
from ._arrays import borrow


class Calibration:
    """Statistics of a layer's inputs: fed in blocks, merged in any grouping, written and read as bytes.

    They take ``8 n^2`` bytes whatever the number of samples. Several threads may feed one object.

    Parameters
    ----------
    n : int
        The number of inputs of the layer.
    form : {"gram", "factor"}
        Keep the Gram matrix, or the triangular factor, which has twice the digits at some four times the work.
    accumulation : {"f64", "f32"}
        The arithmetic of a block; f32 is about twice as fast, and correct to 1e-6 of the norm.
    non_finite : {"refuse", "skip"}
        Refuse samples with NaN or infinities, or leave them out and count them.

    Raises
    ------
    EmptyError, TooLargeError, OptionError
        For ``n = 0``, for too large an n, for options that do not go together.

    Examples
    --------
    >>> import numpy as np, tensorslim
    >>> c = tensorslim.Calibration(48)
    >>> for block in np.random.default_rng(0).standard_normal((4, 50, 48), dtype=np.float32):
    ...     c.update(block)
    >>> c.samples
    200
    """

    __slots__ = ("_core",)

    def __init__(self, n: int, *, form: str = "gram", accumulation: str = "f64", non_finite: str = "refuse") -> None:
        self._core = _core.Statistics(n, form, accumulation, non_finite)

    @classmethod
    def _of(cls, core: _core.Statistics) -> Calibration:
        made = cls.__new__(cls)
        made._core = core
        return made

    def update(self, x: Any) -> None:
        """Add samples, the rows of `x`, of shape (..., n) and any type and strides that `factor` takes.

        Raises
        ------
        ShapeError, NotFiniteError, LayoutError
            Unless there are n columns, all finite; after an error nothing has changed.
        """
        self._core.update(borrow(x)[0])

    def merge(self, other: Calibration) -> None:
        """Add the samples that another one has seen.

        Raises
        ------
        ShapeError, OptionError
            If it has another number of features or another form.
        """
        self._core.merge(other._core)

    def copy(self) -> Calibration:
        """Return a copy, which shares the memory until one of the two is updated."""
        return self._of(self._core.copy())

    def to_bytes(self) -> bytes:
        """Write the statistics, in the format of the command line."""
        return self._core.write()

    @classmethod
    def from_bytes(cls, data: bytes) -> Calibration:
        """Read what `to_bytes` or the command line wrote.

        Raises
        ------
        FormatError
            For bytes of another format, or damaged ones.
        """
        return cls._of(_core.Statistics.read(bytes(data)))

    @property
    def features(self) -> int:
        """The number of features, n."""
        return self._core.features

    @property
    def samples(self) -> int:
        """The number of samples seen, without those skipped."""
        return self._core.samples

    @property
    def skipped(self) -> int:
        """The number of samples left out because they were not finite."""
        return self._core.skipped

    @property
    def means(self) -> np.ndarray:
        """The mean of each feature."""
        return self._core.means

    @property
    def dead(self) -> list[int]:
        """The features that were zero in every sample."""
        return self._core.dead

    def gram(self) -> np.ndarray:
        """Return the Gram matrix ``X^T X``, shape (n, n) in float64."""
        return self._core.gram()

    def __eq__(self, other: object) -> bool:
        return self._core.equals(other._core) if isinstance(other, Calibration) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return type(self).from_bytes, (self.to_bytes(),)

    def __repr__(self) -> str:
        return f"<Calibration of {self.features} features, {self.samples} samples>"
