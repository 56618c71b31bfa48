"""Quantiles of the normal distribution, for random numbers and for `erfinv`.

Wichura's algorithm PPND16, relative error about 1e-16, in its parts: callers can run the first over many numbers at
once, and those without a decision also write machine code (`philox_ir`).

References
----------
Wichura, "Algorithm AS 241: the percentage points of the normal distribution", Applied Statistics 37 (1988).
"""

from __future__ import annotations

import math

from disttensor.kernels._jit import kernel


@kernel()
def quantile_central(q: float) -> float:
    """The quantile of the probability 1/2 + q, for \\|q\\| ≤ 0.425."""
    r = 0.180625 - q * q
    top = 2.5090809287301226727e3 * r + 3.3430575583588128105e4
    top = ((top * r + 6.7265770927008700853e4) * r + 4.5921953931549871457e4) * r + 1.3731693765509461125e4
    top = ((top * r + 1.9715909503065514427e3) * r + 1.3314166789178437745e2) * r + 3.3871328727963666080e0
    bottom = 5.2264952788528545610e3 * r + 2.8729085735721942674e4
    bottom = ((bottom * r + 3.9307895800092710610e4) * r + 2.1213794301586595867e4) * r + 5.3941960214247511077e3
    bottom = ((bottom * r + 6.8718700749205790830e2) * r + 4.2313330701600911252e1) * r + 1.0
    return q * top / bottom


@kernel()
def quantile_tail(p: float) -> float:
    """The quantile of a probability p with \\|p − 1/2\\| > 0.425."""
    magnitude = quantile_magnitude(min(p, 1.0 - p))
    return -magnitude if p < 0.5 else magnitude


@kernel()
def quantile_magnitude(p: float) -> float:
    """Minus the quantile of a probability p < 0.075; infinite for 0."""
    if p <= 0.0:
        return math.inf if p == 0.0 else math.nan
    r = math.sqrt(-math.log(p))
    return quantile_near(r - 1.6) if r <= 5.0 else quantile_far(r - 5.0)


@kernel()
def quantile_near(r: float) -> float:
    """`quantile_magnitude` by r = √(−log p) − 1.6, for r ≤ 3.4."""
    top = 7.74545014278341407640e-4 * r + 2.27238449892691845833e-2
    top = ((top * r + 2.41780725177450611770e-1) * r + 1.27045825245236838258e0) * r + 3.64784832476320460504e0
    top = ((top * r + 5.76949722146069140550e0) * r + 4.63033784615654529590e0) * r + 1.42343711074968357734e0
    bottom = 1.05075007164441684324e-9 * r + 5.47593808499534494600e-4
    bottom = ((bottom * r + 1.51986665636164571966e-2) * r + 1.48103976427480074590e-1) * r
    bottom = ((bottom + 6.89767334985100004550e-1) * r + 1.67638483018380384940e0) * r
    return top / ((bottom + 2.05319162663775882187e0) * r + 1.0)


@kernel()
def quantile_far(r: float) -> float:
    """`quantile_magnitude` by r = √(−log p) − 5, for r > 0."""
    top = 2.01033439929228813265e-7 * r + 2.71155556874348757815e-5
    top = ((top * r + 1.24266094738807843860e-3) * r + 2.65321895265761230930e-2) * r + 2.96560571828504891230e-1
    top = ((top * r + 1.78482653991729133580e0) * r + 5.46378491116411436990e0) * r + 6.65790464350110377720e0
    bottom = 2.04426310338993978564e-15 * r + 1.42151175831644588870e-7
    bottom = ((bottom * r + 1.84631831751005468180e-5) * r + 7.86869131145613259100e-4) * r
    bottom = ((bottom + 1.48753612908506148525e-2) * r + 1.36929880922735805310e-1) * r
    return top / ((bottom + 5.99832206555887937690e-1) * r + 1.0)
