"""Factorizations: `factor`, `factor_many`, `plan` and their result."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Sequence

import numpy as np

from . import _core
from ._arrays import Converter, borrow

if TYPE_CHECKING:
    from ._calibration import Calibration

_RULES = ("rank", "ratio", "energy", "tolerance", "quality", "above", "numerical")


def _rule(values: tuple[Any, ...]) -> tuple[str, Any]:
    """Return the one rule that is given, with its number; `values` are in the order of `_RULES`."""
    given = [(rule, value) for rule, value in zip(_RULES, values) if value is not None]
    if len(given) != 1:
        named = ", ".join(rule for rule, _ in given) or "none of them"
        raise TypeError(f"give one of rank, ratio, energy, tolerance, quality, above and numerical; got {named}")
    rule, value = given[0]
    return rule, operator.index(value) if rule == "rank" else value


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that are given: the core knows the defaults of the others."""
    return {name: value for name, value in options.items() if value is not None}


def _statistics(calibration: Optional[Calibration]) -> Optional[_core.Statistics]:
    return None if calibration is None else calibration._core


class Agreement(NamedTuple):
    """How well the outputs of a layer before and after agree.

    Attributes
    ----------
    cosine : float
        The cosine between all outputs before and all outputs after.
    relative_error : float
        ``||Y - Y'|| / ||Y||`` in the Frobenius norm.
    """

    cosine: float
    relative_error: float


class Factors:
    """The factors ``U diag(s) Vt`` of a matrix, with a report. `factor` makes them.

    Attributes
    ----------
    u : array, shape (m, k)
        The left singular vectors; columns are orthonormal.
    s : array, shape (k,)
        The singular values, nonincreasing.
    vt : array, shape (k, n)
        The right singular vectors; rows are orthonormal.
    report : dict
        What was done and how good it is. Keys: ``shape, dtype, precision, rank, method, reason, sketch, seed,
        oversample, power_iterations, norm, spectrum, relative_error, error_kind ("exact" or "estimate"), passes,
        elapsed_ms, peak_bytes, params_before, params_after, ratio, notes, activation``. The last one is None without
        calibration, otherwise a dict of ``samples, skipped,
        whitening, blend, output_samples, relative_error, cosine, norm, spectrum``.

    Notes
    -----
    Arrays of NumPy are read-only views of what the factors hold; copy them to change them. Arrays of other frameworks
    are copies, made once.
    """

    __slots__ = ("_core", "_kept", "_like")

    def __init__(self, core: _core.Factors, like: Optional[Converter] = None) -> None:
        self._core = core
        self._like = like
        self._kept: dict[str, Any] = {}

    def _part(self, name: str) -> Any:
        if name not in self._kept:
            array = getattr(self._core, name)
            self._kept[name] = array if self._like is None else self._like(array.copy())
        return self._kept[name]

    def _give(self, array: np.ndarray) -> Any:
        return array if self._like is None else self._like(array)

    @property
    def u(self) -> Any:
        return self._part("u")

    @property
    def s(self) -> Any:
        return self._part("s")

    @property
    def vt(self) -> Any:
        return self._part("vt")

    @property
    def report(self) -> dict[str, Any]:
        if "report" not in self._kept:
            self._kept["report"] = self._core.report
        return self._kept["report"]

    @property
    def rank(self) -> int:
        """The rank, k."""
        return self._core.rank

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix, (m, n)."""
        return self._core.shape

    @property
    def relative_error(self) -> float:
        """The relative error ``||W - W'|| / ||W||`` in the Frobenius norm, as certified."""
        return self._core.relative_error

    def split(self, mode: str = "balanced") -> tuple[Any, Any]:
        """Return the weights of two thin layers, ``up`` (m, k) and ``down`` (k, n): ``up @ down = U diag(s) Vt``.

        Parameters
        ----------
        mode : {"balanced", "left", "right"}
            Where the singular values go: their square roots to both sides, all of them to ``up``, or to ``down``.

        Raises
        ------
        OptionError
            For another mode.
        """
        up, down = self._core.split(mode)
        return self._give(up), self._give(down)

    def truncate(self, rank: int) -> Factors:
        """Return the factorization of a smaller rank that is in this one, with its own certificate.

        Raises
        ------
        RankError
            Unless ``1 <= rank <= self.rank``.
        """
        return Factors(self._core.truncate(operator.index(rank)), self._like)

    def apply(self, x: Any) -> Any:
        """Compute ``y = x W'^T`` through the factors, for samples ``x`` of shape (..., n); ``y`` has shape (..., m).

        Raises
        ------
        ShapeError
            Unless the last axis of `x` has n elements.
        """
        given, like = borrow(x)
        y = self._core.apply(given)
        return y if like is None else like(y)

    def reconstruct(self) -> Any:
        """Compute ``U diag(s) Vt``, shape (m, n)."""
        return self._give(self._core.reconstruct())

    def residual(self, w: Any) -> Any:
        """Compute ``W - U diag(s) Vt`` in one pass, in the arithmetic of the factors.

        Raises
        ------
        ShapeError
            Unless `w` has the shape of the factors.
        """
        given, like = borrow(w)
        residual = self._core.residual(given)
        return residual if like is None else like(residual)

    def agreement(self, w: Any, on: Any) -> Agreement:
        """Compare the outputs ``x W^T`` and ``x W'^T``.

        Parameters
        ----------
        w : array, shape (m, n)
            The weight that was factored.
        on : array of shape (samples, n), or Calibration
            The samples, or statistics of them.

        Raises
        ------
        ShapeError, NotFiniteError
            For shapes that do not fit, for NaN and infinities.
        """
        return Agreement(*self._core.agreement(borrow(w)[0], getattr(on, "_core", None) or borrow(on)[0]))

    def __repr__(self) -> str:
        (m, n), report = self.shape, self.report
        return f"<Factors {m}x{n}, rank {self.rank}, relative error {self.relative_error:.4g} ({report['error_kind']})>"


def factor(
    w: Any,
    rank: Optional[int] = None,
    *,
    ratio: Optional[float] = None,
    energy: Optional[float] = None,
    tolerance: Optional[float] = None,
    quality: Optional[float] = None,
    above: Optional[float] = None,
    numerical: bool = False,
    method: Optional[str] = None,
    sketch: Optional[str] = None,
    oversample: Optional[int] = None,
    power_iterations: Optional[int] = None,
    seed: int = 0,
    calibration: Optional[Calibration] = None,
    output_calibration: Optional[Calibration] = None,
    precision: Optional[str] = None,
    memory_limit: Optional[int] = None,
    max_rank: Optional[int] = None,
    dynamic_shift: bool = False,
    smallest: bool = False,
    blend: Optional[float] = None,
    output_blend: Optional[float] = None,
    whitening: Optional[str] = None,
    quality_on: Optional[Calibration] = None,
    minus: Any = None,
    row_axes: Optional[int] = None,
    progress: Optional[Callable[[int], Any]] = None,
) -> Factors:
    """Factor a matrix into ``U diag(s) Vt``, with a certificate of how far the factors are from it.

    Give exactly one rule for the rank: `rank`, `ratio`, `energy`, `tolerance`, `quality`, `above` or `numerical`.

    Parameters
    ----------
    w : array, shape (m, n)
        The weight, outputs by inputs: a NumPy array or anything with ``__dlpack__`` on the CPU, in float16, bfloat16,
        float32 or float64, of any strides. It is read in place.
    rank : int
        This rank, ``1 <= rank <= min(m, n)``.
    ratio : float
        The largest rank whose factors have at least `ratio` times fewer numbers: ``m n / (k (m + n + 1)) >= ratio``.
    energy : float
        The smallest rank that keeps this share of ``||W||^2``, in (0, 1].
    tolerance : float
        The smallest rank of at most this relative error, in (0, 1).
    quality : float
        The smallest rank whose outputs have at least this cosine with the true ones, in (0, 1), on `quality_on` or on
        `calibration`.
    above : float
        The number of singular values above this one.
    numerical : bool
        The numerical rank: as many as are not rounding of the arithmetic.
    method : str, optional
        ``"auto"`` (default), ``"full"``, ``"gram"``, ``"randomized"``, ``"krylov"``, ``"single-pass"``, ``"nystrom"``.
    sketch : str, optional
        ``"srht"`` (default), ``"gaussian"`` or ``"sparse-sign"``.
    oversample, power_iterations : int, optional
        Columns beyond the rank (default 10) and power iterations (default 2) of the random methods.
    seed : int
        One seed gives the same bits, on any number of threads.
    calibration : Calibration, optional
        Weights the error by the inputs that these statistics have seen.
    output_calibration : Calibration, optional
        Weights the error by the outputs, too: statistics of the gradients of a loss with respect to the m outputs.
    precision : {"f32", "f64"}, optional
        The arithmetic; by default f64 for float64 and f32 for the other types.
    memory_limit : int, optional
        The most bytes that the call may allocate.
    max_rank : int, optional
        The largest rank that `energy` and `tolerance` may return.
    dynamic_shift : bool
        Shift the power iterations: a better subspace where the spectrum decays slowly.
    smallest : bool
        Return the smallest triplets of as many as `rank` or `ratio` say, and not the largest.
    blend : float, optional
        How much the calibration is trusted, from 0 to 1 (the default).
    output_blend : float, optional
        The same for `output_calibration`.
    whitening : {"full", "diagonal"}, optional
        The part of the calibration that weights the error.
    quality_on : Calibration, optional
        The inputs that `quality` is measured on.
    minus : array, shape (m, n), optional
        Factor ``w - minus``, which is never formed: the update of a fine-tuned weight.
    row_axes : int, optional
        For more than two axes, how many of the first ones are rows: 1 for a convolution ``(out, in, kh, kw)``.
    progress : callable, optional
        Called with the bytes of the matrix that were read so far, about 20 times a second. An exception in it, and
        Ctrl-C, end the call.

    Returns
    -------
    Factors
        With arrays of the kind of `w`.

    Raises
    ------
    TypeError
        For an array of another type, or in the memory of a GPU; unless there is one rule for the rank.
    RankError, OptionError, ShapeError, EmptyError, LayoutError, NotFiniteError, RangeError, MemoryLimitError
        As their names say; all of them are `tensorslim.Error`.

    Examples
    --------
    >>> import numpy as np, tensorslim
    >>> w = np.sin(0.37 * np.arange(96 * 64, dtype=np.float32)).reshape(96, 64)
    >>> f = tensorslim.factor(w, rank=2)
    >>> f.u.shape, f.relative_error < 1e-3
    ((96, 2), True)
    """
    rule, value = _rule((rank, ratio, energy, tolerance, quality, above, numerical or None))
    options = _given(
        method=method, sketch=sketch, oversample=oversample, power_iterations=power_iterations, seed=seed,
        dynamic_shift=dynamic_shift or None, smallest=smallest or None, max_rank=max_rank,
        calibration=_statistics(calibration), output_calibration=_statistics(output_calibration),
        quality_on=_statistics(quality_on), blend=blend, output_blend=output_blend, whitening=whitening,
        memory_limit=memory_limit, precision=precision,
    )  # fmt: skip
    given, like = borrow(w)
    base = None if minus is None else borrow(minus)[0]
    return Factors(_core.factor(given, base, row_axes, rule, value, options, progress), like)


def factor_many(
    weights: Sequence[Any],
    rank: Optional[int] = None,
    *,
    ratio: Optional[float] = None,
    energy: Optional[float] = None,
    tolerance: Optional[float] = None,
    above: Optional[float] = None,
    method: Optional[str] = None,
    sketch: Optional[str] = None,
    oversample: Optional[int] = None,
    power_iterations: Optional[int] = None,
    seed: int = 0,
    precision: Optional[str] = None,
    memory_limit: Optional[int] = None,
    max_rank: Optional[int] = None,
    dynamic_shift: bool = False,
    return_exceptions: bool = False,
) -> list[Any]:
    """Factor many matrices, small ones one per thread. The bits are those of single calls of `factor`.

    Parameters
    ----------
    weights : sequence of arrays
        As for `factor`; shapes and types may differ. The arithmetic is f64 if any of them is float64.
    return_exceptions : bool
        Return the exception of a matrix in its place, instead of raising the first one.

    Returns
    -------
    list of Factors
        In the order of `weights`.
    """
    rule, value = _rule((rank, ratio, energy, tolerance, None, above))
    options = _given(
        method=method, sketch=sketch, oversample=oversample, power_iterations=power_iterations, seed=seed,
        dynamic_shift=dynamic_shift or None, max_rank=max_rank, memory_limit=memory_limit, precision=precision,
    )  # fmt: skip
    borrowed = [borrow(w) for w in weights]
    results = _core.factor_many([given for given, _ in borrowed], rule, value, options)
    out: list[Any] = []
    for result, (_, like) in zip(results, borrowed):
        if isinstance(result, Exception):
            if not return_exceptions:
                raise result
            out.append(result)
        else:
            out.append(Factors(result, like))
    return out


class Side(NamedTuple):
    """One side of the factors of a matrix.

    Attributes
    ----------
    vectors : array, shape (m, k)
        The leading left singular vectors.
    s : array, shape (k,)
        The singular values, nonincreasing.
    relative_error : float
        The error of the projection on them, ``||W - U U^T W|| / ||W||``.
    products : int
        How many products with the matrix it took.
    """

    vectors: Any
    s: Any
    relative_error: float
    products: int


def basis(
    w: Any,
    rank: int,
    start: Any = None,
    *,
    oversample: Optional[int] = None,
    power_iterations: Optional[int] = None,
    seed: int = 0,
    precision: Optional[str] = None,
) -> Side:
    """Compute the leading left singular vectors alone, as those who project gradients need them (GaLore).

    Parameters
    ----------
    w : array, shape (m, n)
        As for `factor`. For the right side give the transpose.
    rank : int
        How many vectors, k.
    start : array, shape (m, j), optional
        A basis that was good for a matrix near this one, such as the vectors of the last step: with it half of the
        products or fewer are enough.
    oversample, power_iterations, seed, precision
        As for `factor`; a start stands for two of the power iterations.

    Returns
    -------
    Side
        With arrays of the kind of `w`.

    Examples
    --------
    >>> import numpy as np, tensorslim
    >>> gradient = np.sin(0.37 * np.arange(96 * 64, dtype=np.float32)).reshape(96, 64)
    >>> last = tensorslim.basis(gradient, 2)
    >>> tensorslim.basis(gradient + 1e-3, 2, last.vectors).relative_error < 1e-2
    True
    """
    options = _given(oversample=oversample, power_iterations=power_iterations, seed=seed, precision=precision)
    given, like = borrow(w)
    from_start = None if start is None else borrow(start)[0]
    vectors, s, error, products = _core.basis(given, float(operator.index(rank)), from_start, options)
    if like is not None:
        vectors, s = like(vectors), like(s)
    return Side(vectors, s, error, products)


class Plan(NamedTuple):
    """What `factor` would do.

    Attributes
    ----------
    peak_bytes : int
        The most bytes that the call allocates, its result included.
    explanation : str
        The methods that were weighed, in words.
    """

    peak_bytes: int
    explanation: str


def plan(
    shape: tuple[int, int],
    dtype: str = "f32",
    rank: Optional[int] = None,
    *,
    ratio: Optional[float] = None,
    energy: Optional[float] = None,
    tolerance: Optional[float] = None,
    above: Optional[float] = None,
    method: Optional[str] = None,
    sketch: Optional[str] = None,
    oversample: Optional[int] = None,
    power_iterations: Optional[int] = None,
    precision: Optional[str] = None,
    memory_limit: Optional[int] = None,
    max_rank: Optional[int] = None,
    calibration: Optional[Calibration] = None,
) -> Plan:
    """Plan what `factor` would do with a matrix of this shape and type (``"f16"``, ``"bf16"``, ``"f32"``, ``"f64"``).

    Raises
    ------
    RankError, OptionError, EmptyError, MemoryLimitError
        Those that `factor` raises for such a matrix.
    """
    rule, value = _rule((rank, ratio, energy, tolerance, None, above))
    options = _given(
        method=method, sketch=sketch, oversample=oversample, power_iterations=power_iterations, max_rank=max_rank,
        calibration=_statistics(calibration), memory_limit=memory_limit, precision=precision,
    )  # fmt: skip
    m, n = shape
    return Plan(*_core.plan((m, n), dtype, rule, value, options))
