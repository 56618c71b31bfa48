"""Four textbook computations, each compared with its closed form or with a plain numpy definition.

    python examples/basics.py
    mpirun -n 4 python examples/basics.py

1. Linear regression by gradient descent, against the normal equations.
2. Logistic regression with the sigmoid, against Newton's method in numpy.
3. Convolution and pooling, against their formulas as loops.
4. Gradient descent by hand with `GradientTape`, against the solution of a linear system.

Each line ends with the largest difference; the example fails if one is too large.
"""

from __future__ import annotations

import numpy as np

import disttensor as keras
from disttensor import distributed, layers, ops


def report(name: str, difference: float, tolerance: float) -> None:
    """Print the difference, and fail if it is not small."""
    if distributed.is_main():
        print(f"{name}: largest difference {difference:.2e} (tolerance {tolerance:.0e})")
    if not difference <= tolerance:
        raise SystemExit(f"{name}: {difference} exceeds {tolerance}")


def linear_regression(rng: np.random.Generator) -> None:
    """y = Xw + b fitted with `fit`; the least-squares solution solves the normal equations (X'X)w = X'y."""
    x = rng.normal(size=(200, 3)).astype("float32")
    y = x @ np.array([[1.5], [-2.0], [0.5]], "float32") + 0.7 + 0.1 * rng.normal(size=(200, 1)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    model.fit(x, y, batch_size=200, epochs=200, verbose=0)
    design = np.hstack([x, np.ones((200, 1))]).astype("float64")
    closed = np.linalg.solve(design.T @ design, design.T @ y)
    fitted = np.vstack(model.get_weights()[0:1] + [model.get_weights()[1][None]])
    report("linear regression", float(abs(fitted - closed).max()), 1e-4)


def logistic_regression(rng: np.random.Generator) -> None:
    """P(y = 1) = 1 / (1 + exp(-(Xw + b))) with a small L2 penalty; Newton's method finds the same optimum."""
    x = rng.normal(size=(300, 2)).astype("float32")
    y = (rng.random((300, 1)) < 1 / (1 + np.exp(-(x @ [[2.0], [-1.0]] + 0.5)))).astype("float32")
    penalty = 1e-2
    dense = layers.Dense(1, activation="sigmoid", kernel_regularizer=keras.regularizers.L2(penalty))
    model = keras.Sequential([keras.Input((2,)), dense])
    model.compile(keras.optimizers.SGD(1.0, momentum=0.9), loss="binary_crossentropy")
    model.fit(x, y, batch_size=300, epochs=300, verbose=0)
    design = np.hstack([x, np.ones((300, 1))]).astype("float64")
    ridge = np.diag([2 * penalty, 2 * penalty, 0.0])
    w = np.zeros((3, 1))
    for _ in range(20):
        p = 1 / (1 + np.exp(-design @ w))
        gradient = design.T @ (p - y) / len(x) + ridge @ w
        hessian = design.T @ (design * p * (1 - p)) / len(x) + ridge
        w -= np.linalg.solve(hessian, gradient)
    fitted = np.vstack([dense.kernel.numpy(), dense.bias.numpy()[None]])
    report("logistic regression", float(abs(fitted - w).max()), 1e-3)


def convolution_and_pooling(rng: np.random.Generator) -> None:
    """out[i, j, k] = sum over u, v, c of x[i + u, j + v, c] kernel[u, v, c, k]; pooling takes maxima and means."""
    x = rng.normal(size=(1, 7, 6, 2))
    kernel = rng.normal(size=(3, 2, 2, 4))
    expected = np.zeros((1, 5, 5, 4))
    for i in range(5):
        for j in range(5):
            window = x[0, i : i + 3, j : j + 2]
            expected[0, i, j] = np.einsum("uvc,uvck->k", window, kernel)
    report("convolution", float(abs(ops.conv(x, kernel).numpy() - expected).max()), 1e-12)
    blocks = x[:, :6, :6].reshape(1, 3, 2, 3, 2, 2)
    report("max pooling", float(abs(ops.max_pool(x, 2).numpy() - blocks.max((2, 4))).max()), 0.0)
    report("average pooling", float(abs(ops.average_pool(x, 2).numpy() - blocks.mean((2, 4))).max()), 1e-12)


def gradient_descent(rng: np.random.Generator) -> None:
    """f(w) = w'Aw/2 - b'w has the gradient Aw - b and its minimum where Aw = b."""
    half = rng.normal(size=(4, 4))
    a, b = half @ half.T + np.eye(4), rng.normal(size=4)
    w = keras.Variable(np.zeros(4), dtype="float64")
    step = 1.0 / np.linalg.eigvalsh(a).max()
    for iteration in range(500):
        with keras.GradientTape() as tape:
            value = 0.5 * ops.sum(w * ops.matmul(a, w)) - ops.sum(b * w)
        gradient = tape.gradient(value, w)
        if iteration == 0:
            report("gradient by hand", float(abs(gradient.numpy() + b).max()), 1e-12)
        w.assign_sub(step * gradient)
    report("gradient descent", float(abs(w.numpy() - np.linalg.solve(a, b)).max()), 1e-8)


def main() -> None:
    """Run all four."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    linear_regression(rng)
    logistic_regression(rng)
    convolution_and_pooling(rng)
    gradient_descent(rng)


if __name__ == "__main__":
    main()
