"""Settings that hold for the whole process.

`floatx`, `epsilon` and `image_data_format` are Keras's; `threads` is how many threads the kernels may use.
"""

from __future__ import annotations

import os

from disttensor import dtypes
from disttensor.errors import ArgumentError

_floatx = "float32"
_epsilon = 1e-7
_image_data_format = "channels_last"
_threads: int | None = None


def floatx() -> str:
    """The default floating-point dtype, ``"float32"`` unless `set_floatx` changed it."""
    return _floatx


def set_floatx(value: str) -> None:
    """Set the default floating-point dtype: "bfloat16", "float16", "float32" or "float64"."""
    global _floatx
    name = dtypes.standardize_dtype(value)
    if not dtypes.is_floating(name):
        raise ArgumentError(f"set_floatx() needs a floating-point dtype, got {value!r}.")
    _floatx = name


def epsilon() -> float:
    """The fuzz factor that keeps logarithms and divisions finite, 1e-7 unless changed."""
    return _epsilon


def set_epsilon(value: float) -> None:
    """Set the fuzz factor; must be positive."""
    global _epsilon
    if not value > 0:
        raise ArgumentError(f"set_epsilon() needs a positive number, got {value!r}.")
    _epsilon = float(value)


def image_data_format() -> str:
    """The default layout of images; always ``"channels_last"``: our kernels are written for it."""
    return _image_data_format


def set_image_data_format(data_format: str) -> None:
    """Accept ``"channels_last"``; anything else is an error, because kernels exist for that layout only."""
    if data_format != "channels_last":
        raise ArgumentError(
            f"image_data_format {data_format!r} is not supported; disttensor stores images as channels_last "
            "(batch, height, width, channels). Transpose the data with ops.transpose(x, (0, 2, 3, 1))."
        )


def threads() -> int:
    """How many threads a kernel may use in this process.

    The first that is set of: `set_threads`, ``DISTTENSOR_THREADS``, ``OMP_NUM_THREADS``, and the number of cores
    this process may run on. The launcher sets the variables so that the ranks of one host share its cores.
    """
    global _threads
    if _threads is None:
        _threads = _threads_from_environment()
    return _threads


def set_threads(count: int) -> None:
    """Set how many threads kernels may use from now on; at least 1."""
    global _threads
    if count < 1:
        raise ArgumentError(f"set_threads() needs at least 1, got {count}.")
    _threads = int(count)


def _threads_from_environment() -> int:
    for name in ("DISTTENSOR_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "").split(",")[0].strip()
        if text:
            if not text.isdigit() or int(text) < 1:
                raise ArgumentError(f"environment variable {name}={os.environ[name]!r} must be a positive integer.")
            return int(text)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
