"""Exceptions. Each is an `Error`, and also the built-in exception that fits it."""

__all__ = [
    "CancelledError",
    "ConvergenceError",
    "DeviceError",
    "EmptyError",
    "Error",
    "FileError",
    "FormatError",
    "InternalError",
    "LayoutError",
    "LengthError",
    "MemoryLimitError",
    "NotFiniteError",
    "OptionError",
    "RangeError",
    "RankError",
    "ShapeError",
    "TooLargeError",
]


class Error(Exception):
    """Any error of this package. The text is one line that says what is wrong, where, and what to do."""


class ShapeError(Error, ValueError):
    """Two sizes that must agree do not."""


class EmptyError(Error, ValueError):
    """A dimension is zero."""


class TooLargeError(Error, MemoryError):
    """A shape does not fit the address space."""


class LayoutError(Error, ValueError):
    """Strides visit an element twice, or axes cannot be merged without a copy."""


class NotFiniteError(Error, ValueError):
    """The input has a NaN or an infinity.

    Attributes
    ----------
    row, col : int
        The place of the first such element.
    value : float
        Its value.
    """


class RankError(Error, ValueError):
    """A rank is outside ``1..=max``.

    Attributes
    ----------
    rank, max : int
        The rank that was asked for, and the largest possible one.
    """


class OptionError(Error, ValueError):
    """An option is outside its range, or does not go with the others.

    Attributes
    ----------
    option : str
        The name of the option.
    """


class RangeError(Error, OverflowError):
    """A value is larger than the arithmetic can compute with, or so small that it would be lost."""


class LengthError(Error, ValueError):
    """No transform or rotation takes vectors of this length."""


class ConvergenceError(Error, ArithmeticError):
    """An iterative kernel did not converge."""


class MemoryLimitError(Error, MemoryError):
    """The work does not fit the memory limit.

    Attributes
    ----------
    limit, least : int
        The limit that was given, and the least that would do, in bytes.
    """


class CancelledError(Error):
    """The work was stopped before it was done."""


class DeviceError(Error, RuntimeError):
    """A device cannot be used, or failed."""


class FileError(Error, OSError):
    """A file cannot be read or written, or its content is wrong."""


class FormatError(Error, ValueError):
    """Bytes do not have the format that they should have."""


class InternalError(Error, RuntimeError):
    """A bug of this package."""
