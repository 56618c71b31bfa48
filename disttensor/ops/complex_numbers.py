"""Complex numbers: their parts, and how to put parts together.

Gradients follow the convention of `disttensor.ops.registry`: of a real loss L with respect to z = x + iy the gradient
is ∂L/∂x + i·∂L/∂y.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from disttensor import dtypes
from disttensor.context import Spec
from disttensor.errors import DTypeError, ShapeError
from disttensor.ops.arithmetic import conjugate
from disttensor.ops.core import broadcast_to, cast
from disttensor.ops.registry import Example, apply, broadcast_shapes, elementwise, operator, promote, public
from disttensor.ops.trigonometric import arctan2
from disttensor.tensor import Tensor

__all__ = ["angle", "complex", "conj", "imag", "real", "view_as_complex", "view_as_real"]

_ANY = ("float", "complex", "int", "bool")

conj = conjugate


@elementwise("real", kinds=_ANY)
def real(m: Any, x: Any) -> Any:
    """The real part; a real number is its own."""
    return m.real(x)


@real.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g


@elementwise("real", kinds=_ANY)
def imag(m: Any, x: Any) -> Any:
    """The imaginary part; 0 for real numbers."""
    return m.imag(x)


@imag.gradient
def _(ctx: Any, g: Tensor) -> Tensor | None:
    return 1j * g if dtypes.is_complex(ctx.inputs[0].dtype) else None


@public
def angle(x: Any) -> Tensor:
    """The angle of complex numbers in the plane, in [−π, π]: arctan2(imag(x), real(x)).

    Parameters
    ----------
    x : tensor-like
        Integers become `config.floatx`; the angle of a negative real number is π.

    Returns
    -------
    Tensor
        Real.
    """
    (x,) = promote([x], floating=True)
    return arctan2(imag(x), real(x))


@operator(examples=[Example((2, 3), (2, 3)), Example((0,), (0,))])
def from_parts(out: np.ndarray, real: np.ndarray, imag: np.ndarray) -> None:
    """Complex numbers from their real and imaginary parts, float32 or float64 arrays of the same shape."""
    out.real, out.imag = real, imag


@from_parts.infer
def _(real: Spec, imag: Spec) -> Spec:
    if real.dtype != imag.dtype or not dtypes.is_floating(real.dtype):
        raise DTypeError(
            f"complex: real and imaginary parts must have one floating-point dtype, got {real.dtype} and {imag.dtype}."
        )
    if real.shape != imag.shape:
        raise ShapeError(f"complex: the parts have shapes {real.shape} and {imag.shape}; they must be equal.")
    return Spec(real.shape, dtypes.complex_of(real.dtype))


@from_parts.gradient
def _(ctx: Any, g: Tensor) -> Any:
    return real(g), imag(g)


@public
def complex(real: Any, imag: Any) -> Tensor:
    """Complex numbers from real and imaginary parts, which broadcast.

    Parameters
    ----------
    real, imag : tensor-like
        Real numbers.

    Returns
    -------
    Tensor
        complex128 if a part is float64, else complex64.

    Raises
    ------
    DTypeError
        If a part is complex.
    """
    parts = promote([real, imag], floating=True)
    if dtypes.is_complex(parts[0].dtype):
        raise DTypeError("complex: real and imaginary parts must be real numbers, got a complex tensor.")
    shape = broadcast_shapes("complex", [p.shape for p in parts])
    dtype = dtypes.real_part(dtypes.complex_of(parts[0].dtype))
    return apply(from_parts, [broadcast_to(cast(p, dtype), shape) for p in parts], {})


@operator(examples=[Example((2, 3)), Example(())], kinds=("complex",))
def view_as_real(out: np.ndarray, x: np.ndarray) -> None:
    """Complex numbers as pairs of real ones: shape (...) becomes (..., 2)."""
    out[..., 0], out[..., 1] = x.real, x.imag


@view_as_real.infer
def _(x: Spec) -> Spec:
    if not dtypes.is_complex(x.dtype):
        raise DTypeError(f"view_as_real needs a complex tensor, got dtype {x.dtype}.")
    return Spec((*x.shape, 2), dtypes.real_part(x.dtype))


@view_as_real.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return view_as_complex(g)


@operator(examples=[Example((2, 3, 2)), Example((2,))])
def view_as_complex(out: np.ndarray, x: np.ndarray) -> None:
    """Pairs of real numbers as complex ones: shape (..., 2) becomes (...)."""
    out.real, out.imag = x[..., 0], x[..., 1]


@view_as_complex.infer
def _(x: Spec) -> Spec:
    if not x.shape or x.shape[-1] != 2:
        raise ShapeError(f"view_as_complex needs pairs, a last axis of size 2; got shape {x.shape}.")
    if not dtypes.is_floating(x.dtype):
        raise DTypeError(f"view_as_complex needs a floating-point tensor, got dtype {x.dtype}.")
    return Spec(x.shape[:-1], dtypes.complex_of(x.dtype))


@view_as_complex.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return view_as_real(g)
