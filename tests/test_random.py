"""Random numbers: distributions, seeds, generators in traced functions, and slices of global batches."""

from __future__ import annotations

import contextlib
import random as python_random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.stats

from disttensor import ops, random
from disttensor.autodiff import GradientTape
from disttensor.context import Shard, state
from disttensor.errors import ArgumentError, DTypeError, ShapeError
from disttensor.graph.function import function
from disttensor.random import SeedGenerator
from disttensor.tensor import KerasTensor, Tensor, convert_to_tensor

Draw = Callable[..., Tensor]

# Each draws rows for the batch in work; the argument `rows` is how many.
SAMPLERS: list[tuple[str, Draw]] = [
    ("normal", lambda rows, seed: random.normal((rows, 3, 2), seed=seed)),
    ("truncated_normal", lambda rows, seed: random.truncated_normal((rows, 5), dtype="float64", seed=seed)),
    ("uniform", lambda rows, seed: random.uniform((rows,), -1, 3, seed=seed)),
    ("randint", lambda rows, seed: random.randint((rows, 3), 0, 1000, seed=seed)),
    ("categorical", lambda rows, seed: random.categorical(np.zeros((rows, 50)), 4, seed=seed)),
]
samplers = pytest.mark.parametrize("draw", [f for _, f in SAMPLERS], ids=[n for n, _ in SAMPLERS])


@pytest.fixture(autouse=True)
def _own_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the process's seeds alone."""
    monkeypatch.setattr(random, "_seeds", random._Seeds())


@contextlib.contextmanager
def batch(shard: Shard) -> Iterator[None]:
    """A step on this slice of a global batch."""
    saved, state.shard = state.shard, shard
    try:
        yield
    finally:
        state.shard = saved


def sharded(array: np.ndarray, shard: Shard) -> Tensor:
    x = convert_to_tensor(array)
    x.shard = shard
    return x


# Distributions


@pytest.mark.parametrize(
    ("sample", "distribution"),
    [
        (lambda: random.normal((20000,), 2, 3, seed=1), scipy.stats.norm(2, 3)),
        (lambda: random.normal((20000,), dtype="float64", seed=2), scipy.stats.norm()),
        (lambda: random.truncated_normal((20000,), 1, 2, seed=3), scipy.stats.truncnorm(-2, 2, 1, 2)),
        (lambda: random.uniform((20000,), seed=4), scipy.stats.uniform()),
        (lambda: random.uniform((20000,), -2, 5, seed=5), scipy.stats.uniform(-2, 7)),
    ],
)
def test_distribution(sample: Callable[[], Tensor], distribution: Any) -> None:
    assert scipy.stats.kstest(sample().array, distribution.cdf).pvalue > 1e-3


def test_randint_is_even() -> None:
    x = random.randint((12000,), -2, 4, seed=1)
    assert x.dtype == "int32"
    values, counts = np.unique(x.array, return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2, 3]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_categorical_has_the_probabilities_of_the_softmax() -> None:
    p = np.array([[0.1, 0.6, 0.3], [0.5, 0, 0.5]])
    with np.errstate(divide="ignore"):
        x = random.categorical(np.log(p) + 7, 20000, dtype="int64", seed=1)
    assert (x.shape, x.dtype) == ((2, 20000), "int64")
    for row, expected in zip(x.array, p, strict=True):
        frequencies = np.bincount(row, minlength=3) / row.size
        np.testing.assert_allclose(frequencies, expected, atol=0.015)
        assert not frequencies[expected == 0].any()


def test_shuffle_permutes_whole_slices() -> None:
    x = np.arange(30).reshape(3, 10)
    y = random.shuffle(x, axis=1, seed=1).array
    assert sorted(map(tuple, y.T)) == sorted(map(tuple, x.T))
    assert not (y == x).all()
    with pytest.raises(ShapeError, match=r"axis 2.*\(3, 10\)"):
        random.shuffle(x, axis=2)


def test_every_permutation_is_as_likely() -> None:
    generator = SeedGenerator(1)
    orders = [tuple(random.shuffle([0, 1, 2], seed=generator).tolist()) for _ in range(600)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_mean_and_deviation_may_be_tensors_and_have_gradients() -> None:
    mean, deviation = convert_to_tensor(np.zeros(3, np.float32)), convert_to_tensor(np.ones(3, np.float32))
    with GradientTape() as tape:
        tape.watch([mean, deviation])
        x = random.normal((2, 3), mean, deviation, seed=1)
    slopes = tape.gradient(x, [mean, deviation])
    noise = random.normal((2, 3), seed=1).array
    assert slopes[0].tolist() == [2, 2, 2]
    np.testing.assert_allclose(slopes[1].array, noise.sum(axis=0), rtol=1e-6)


@pytest.mark.parametrize("draw", [random.normal, random.uniform, random.truncated_normal])
def test_continuous_distributions_need_a_floating_dtype(draw: Draw) -> None:
    assert draw((2,), dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(DTypeError, match="int32"):
        draw((2,), dtype="int32")


@pytest.mark.parametrize("arguments", [(3, 3), (0, 300, "uint8"), (-1, 2, "uint32"), (0, 2, "float32")])
def test_randint_of_wrong_arguments(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ArgumentError, match="randint"):
        random.randint((2,), *arguments)


def test_categorical_needs_two_axes() -> None:
    with pytest.raises(ShapeError, match=r"\(batch, classes\).*\(3,\)"):
        random.categorical(np.zeros(3), 2)


# Dropout


def test_dropout_keeps_the_expectation() -> None:
    y = random.dropout(np.full((100, 200), 3, np.float32), 0.25, seed=1).array
    assert set(np.unique(y)) == {0, 4}
    assert np.mean(y == 0) == pytest.approx(0.25, abs=0.01)


def test_dropout_of_nothing_and_of_everything() -> None:
    x = convert_to_tensor(np.ones((2, 3), np.float32))
    assert random.dropout(x, 0) is x
    assert not random.dropout(x, 1).array.any()


def test_dropout_mask_can_be_shared_along_axes() -> None:
    y = random.dropout(np.ones((6, 7, 8)), 0.5, (None, 1, 8), seed=1).array
    assert (y == y[:, :1]).all()
    assert len(np.unique(y[:, 0], axis=0)) == 6


def test_gradient_of_dropout_is_its_mask() -> None:
    x = convert_to_tensor(np.arange(1, 13, dtype=np.float32).reshape(3, 4))
    with GradientTape() as tape:
        tape.watch(x)
        y = random.dropout(x, 0.5, seed=3)
    np.testing.assert_array_equal(tape.gradient(y, x).array, y.array / x.array)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dropout_drops_the_same_in_every_dtype(dtype: str) -> None:
    dropped = random.dropout(ops.ones((20, 3), "float32"), 0.3, seed=1).array == 0
    y = random.dropout(ops.ones((20, 3), dtype), 0.3, seed=1)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.array == 0, dropped)


def test_dropout_of_wrong_arguments() -> None:
    with pytest.raises(ArgumentError, match="between 0 and 1, got 1.5"):
        random.dropout(np.ones(3), 1.5)
    with pytest.raises(ShapeError, match=r"\(2,\).*\(3,\)"):
        random.dropout(np.ones(3), 0.5, (2,))


# Slices of a global batch


@samplers
def test_slices_of_a_batch_are_those_of_the_whole(draw: Draw) -> None:
    with batch(Shard(7, 7, 0)):
        whole = draw(7, 5)
    for local, offset in ((3, 0), (3, 3), (1, 6)):
        shard = Shard(local, 7, offset)
        with batch(shard):
            part = draw(local, 5)
        np.testing.assert_array_equal(part.array, whole.array[offset : offset + local])
        assert part.shard == shard


@samplers
def test_other_shapes_than_the_batch_are_the_same_on_every_rank(draw: Draw) -> None:
    alone = draw(4, 5)
    with batch(Shard(3, 7, 3)):
        within = draw(4, 5)
    np.testing.assert_array_equal(within.array, alone.array)
    assert within.shard is None


@pytest.mark.parametrize("noise_shape", [None, (None, 1)])
def test_dropout_of_slices_is_that_of_the_whole(noise_shape: Any) -> None:
    x = np.arange(1, 36, dtype=np.float32).reshape(7, 5)
    whole = random.dropout(x, 0.4, noise_shape, seed=5).array
    for local, offset in ((4, 0), (3, 4)):
        part = sharded(x[offset : offset + local], Shard(local, 7, offset))
        y = random.dropout(part, 0.4, noise_shape, seed=5)
        np.testing.assert_array_equal(y.array, whole[offset : offset + local])
        assert y.shard == part.shard


def test_dropout_mask_shared_by_all_rows_is_shared_by_all_ranks() -> None:
    x = np.ones((3, 50), np.float32)
    first = random.dropout(sharded(x, Shard(3, 6, 0)), 0.5, (1, None), seed=5)
    second = random.dropout(sharded(x, Shard(3, 6, 3)), 0.5, (1, None), seed=5)
    np.testing.assert_array_equal(first.array, second.array)


def test_one_plan_serves_every_offset() -> None:
    @function
    def step(x: Tensor) -> Any:
        return random.dropout(x, 0.5, seed=5), random.normal((len(x), 2), seed=6)

    x = np.ones((6, 4), np.float32)
    with batch(Shard(6, 6, 0)):
        whole = [t.array for t in step(sharded(x, Shard(6, 6, 0)))]
    for offset in (0, 2, 4):
        shard = Shard(2, 6, offset)
        with batch(shard):
            parts = step(sharded(x[:2], shard))
        for part, array in zip(parts, whole, strict=True):
            np.testing.assert_array_equal(part.array, array[offset : offset + 2])
    assert step.trace_count == 2


# Seeds


@samplers
def test_an_int_seed_gives_the_same_at_every_call(draw: Draw) -> None:
    np.testing.assert_array_equal(draw(3, 1).array, draw(3, 1).array)
    assert (draw(3, 1).array != draw(3, 2).array).any()


@samplers
def test_a_generator_gives_something_else_at_every_call(draw: Draw) -> None:
    generator, again = SeedGenerator(1), SeedGenerator(1)
    first, second = draw(3, generator).array, draw(3, generator).array
    assert (first != second).any()
    np.testing.assert_array_equal(draw(3, again).array, first)
    np.testing.assert_array_equal(draw(3, again).array, second)
    assert generator.state.numpy().tolist() == [1, 2]


def test_a_drawn_state_can_be_used_again() -> None:
    seed = SeedGenerator(4).next()
    np.testing.assert_array_equal(random.normal((3,), seed=seed).array, random.normal((3,), seed=4).array)


def test_a_traced_function_advances_its_generator() -> None:
    generator, eager = SeedGenerator(9), SeedGenerator(9)

    @function
    def draw() -> Any:
        return random.normal((3,), seed=generator), random.uniform((2,), seed=generator)

    for _ in range(3):
        expected = random.normal((3,), seed=eager), random.uniform((2,), seed=eager)
        for actual, value in zip(draw(), expected, strict=True):
            np.testing.assert_array_equal(actual.array, value.array)
    assert draw.trace_count == 1
    assert generator.state.numpy().tolist() == [9, 6]


def test_a_traced_function_uses_the_shared_generator_anew_after_set_random_seed() -> None:
    @function
    def draw() -> Tensor:
        return random.normal((3,))

    random.set_random_seed(1)
    first, second = draw().array, draw().array
    assert (first != second).any()
    random.set_random_seed(1)
    np.testing.assert_array_equal(draw().array, first)
    np.testing.assert_array_equal(random.normal((3,)).array, second)


def test_set_random_seed_makes_everything_reproducible() -> None:
    def draws() -> list[Any]:
        random.set_random_seed(3)
        unseeded = [random.normal((2,), seed=SeedGenerator()).tolist() for _ in range(2)]
        return [*unseeded, random.uniform((2,)).tolist(), python_random.random(), np.random.random()]

    first = draws()
    assert first == draws()
    assert first[0] != first[1]


def test_set_random_seed_needs_a_number_of_32_bits() -> None:
    random.set_random_seed(5)
    for seed in (-1, 2**32, 1.0, None, True):
        with pytest.raises(ArgumentError, match="0 to 2\\*\\*32 - 1"):
            random.set_random_seed(seed)  # type: ignore[arg-type]
    assert random.global_seed() == 5


def test_the_global_seed_comes_once_from_its_source() -> None:
    answers = iter([11, 12])
    random.bind_seed_source(lambda: next(answers))
    states = [SeedGenerator().state.numpy().tolist() for _ in range(2)]
    assert random.global_seed() == 11
    assert states[0] != states[1]
    random.set_random_seed(11)
    assert [SeedGenerator().state.numpy().tolist() for _ in range(2)] == states


def test_unseeded_processes_differ() -> None:
    seeds = set()
    for _ in range(3):
        random._seeds.seed = None
        seeds.add(random.global_seed())
    assert len(seeds) > 1


@pytest.mark.parametrize("seed", ["1", 1.5, True])
def test_seeds_are_ints(seed: Any) -> None:
    for use in (SeedGenerator, lambda s: random.normal((2,), seed=s)):
        with pytest.raises(ArgumentError, match="seed must be an int"):
            use(seed)


def test_generator_has_a_config_and_no_trainable_state() -> None:
    generator = SeedGenerator(2**32 + 7, name="noise")
    assert SeedGenerator.from_config(generator.get_config()).get_config() == {"seed": 2**32 + 7, "name": "noise"}
    assert generator.state.numpy().tolist() == [7, 0]
    assert not generator.state.trainable
    assert SeedGenerator().name != SeedGenerator().name
    assert SeedGenerator().get_config()["seed"] is None


def test_functional_models_can_hold_random_functions() -> None:
    pytest.importorskip("disttensor.layers.layer")
    assert random.dropout(KerasTensor((None, 3)), 0.5).shape == (None, 3)
