"""How dtypes are stored in safetensors files."""

from __future__ import annotations

STORED_AS = {"complex64": "float32", "complex128": "float64"}
"""The format does not know all complex numbers; they are kept as pairs of reals on a last axis."""

NAMES = {
    "bool": "BOOL", "bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64",
    **{f"{kind}int{bits}": f"{letter}{bits}" for kind, letter in (("", "I"), ("u", "U")) for bits in (8, 16, 32, 64)},
}  # fmt: skip
"""The format's names of dtypes."""
