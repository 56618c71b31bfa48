"""The exceptions and warnings that disttensor raises.

Every error derives from `DistTensorError` and from the built-in type that Python users expect for its kind of
mistake, so that both ``except disttensor.errors.ShapeError`` and ``except ValueError`` work.
"""

from __future__ import annotations


class DistTensorError(Exception):
    """Base of every error raised on purpose by disttensor."""


class ShapeError(DistTensorError, ValueError):
    """Shapes do not fit the operation."""


class DTypeError(DistTensorError, TypeError):
    """A dtype is unknown, or does not fit the operation."""


class ArgumentError(DistTensorError, ValueError):
    """An argument has a value outside what is documented."""


class OutOfRangeError(DistTensorError, IndexError):
    """An index lies outside the axis that it counts along."""


class TracingError(DistTensorError, RuntimeError):
    """Something was asked of a traced value that only a concrete one can give."""


class DistributedError(DistTensorError, RuntimeError):
    """Ranks, the launcher and the MPI library do not fit together, or a rank failed."""


class NonFiniteError(DistTensorError, RuntimeError):
    """Gradients are NaN or infinite."""


class DataError(DistTensorError, ValueError):
    """Training data is missing, damaged or inconsistent."""


class SerializationError(DistTensorError, ValueError):
    """A file or configuration cannot be loaded safely."""


class CheckpointError(DistTensorError, RuntimeError):
    """A checkpoint cannot be written."""


class RetracingWarning(UserWarning):
    """A function is traced so often that tracing costs more than it saves."""
