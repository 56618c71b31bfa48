"""Weights files: what is saved is loaded, to the bit, and what does not fit changes nothing."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import disttensor as keras
from disttensor import dtypes, layers, random
from disttensor.errors import ArgumentError, SerializationError
from disttensor.saving.weights import named_variables

ROOT = Path(__file__).parents[2]
X = np.linspace(-1, 1, 24, dtype="float32").reshape(4, 6)


class Block(layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.inner = [layers.Dense(units, activation="tanh"), layers.Dense(units)]
        self.by_name = {"norm": layers.BatchNormalization(), "drop": layers.Dropout(0.2, seed=3)}

    def call(self, inputs):
        for layer in self.inner:
            inputs = layer(inputs)
        return self.by_name["drop"](self.by_name["norm"](inputs))


class Subclass(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = Block(5)
        self.second = Block(5)
        self.head = layers.Dense(2)
        self.tied = self.first.inner[0]

    def call(self, inputs):
        return self.head(self.second(self.first(inputs)))


def functional():
    inputs = keras.Input((6,))
    shared = layers.Dense(4, activation="relu")
    left, right = shared(inputs), shared(inputs * 2.0)
    nested = keras.Sequential([layers.Dense(3), layers.BatchNormalization()])
    return keras.Model(inputs, [layers.Dense(2)(nested(left + right)), layers.Dense(1)(left)])


def sequential():
    return keras.Sequential([layers.Dense(4, activation="relu"), layers.BatchNormalization(), layers.Dense(2)])


MAKERS = [Subclass, functional, sequential]


def randomised(make, seed):
    model = make()
    model(X)
    rng = np.random.default_rng(seed)
    for variable in named_variables(model).values():
        if dtypes.is_floating(variable.dtype):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def values_of(model):
    return [v.numpy() for v in model.variables]


@pytest.mark.parametrize("make", MAKERS)
def test_a_fresh_instance_predicts_the_same_bits(tmp_path, make):
    first, second = randomised(make, 1), randomised(make, 2)
    path = tmp_path / "w.safetensors"
    first.save_weights(path)
    second.load_weights(path)
    expected, got = first.predict(X, verbose=0), second.predict(X, verbose=0)
    for a, b in zip(keras.tree.flatten(expected), keras.tree.flatten(got), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [layer.name for layer in first.layers] != [layer.name for layer in second.layers]


def test_names_say_where_a_variable_stands():
    assert list(named_variables(randomised(Subclass, 0)))[:9] == [
        "block/dense/kernel", "block/dense/bias", "block/dense_1/kernel", "block/dense_1/bias",
        "block/batch_normalization/gamma", "block/batch_normalization/beta",
        "block/batch_normalization/moving_mean", "block/batch_normalization/moving_variance",
        "block/dropout/seed_generator",
    ]  # fmt: skip


def test_a_stack_is_named_alike_whether_its_input_was_known(tmp_path):
    known = keras.Sequential([keras.Input((6,)), *sequential().layers])
    assert list(named_variables(known)) == list(named_variables(randomised(sequential, 0)))


def test_the_state_of_random_generators_is_saved(tmp_path):
    def noisy():
        return keras.Sequential([keras.Input((6,)), layers.Dropout(0.5, seed=1)])

    first, second = noisy(), noisy()
    first(X, training=True)
    first.save_weights(tmp_path / "w.safetensors")
    second.load_weights(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(first(X, training=True), second(X, training=True))


class Odd(layers.Layer):
    """Weights of one dtype, of awkward shapes and with awkward names."""

    def __init__(self, dtype):
        super().__init__()
        for shape, name in [((), "a/b"), ((0, 3), "a"), ((2, 3), "a"), ((2,), "a_1"), ((1,), "a_b")]:
            self.add_weight(shape, "zeros", dtype, trainable=False, name=name)
        self.generator = random.SeedGenerator(5)

    def call(self, inputs):
        return inputs


@pytest.mark.parametrize("dtype", dtypes.ALL)
def test_every_dtype_and_shape(tmp_path, rng, dtype):
    first, second = (keras.Sequential([Odd(dtype)]) for _ in range(2))
    for model in (first, second):
        model(X)
    for variable in first.weights:
        numbers = rng.integers(0, 2, variable.shape) + (0.1j * rng.normal() if "complex" in dtype else 0)
        variable.assign(numbers.astype(dtypes.to_numpy(dtype)))
    first.save_weights(tmp_path / "w.safetensors")
    second.load_weights(tmp_path / "w.safetensors")
    assert len(first.weights) == 5
    for a, b in zip(first.variables, second.variables, strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()
        assert a.dtype == b.dtype


def test_files_are_plain_safetensors(tmp_path):
    model = randomised(sequential, 1)
    model.save_weights(tmp_path / "w.safetensors")
    arrays = load_file(tmp_path / "w.safetensors")
    assert set(arrays) == set(named_variables(model))
    np.testing.assert_array_equal(arrays["dense_1/kernel"], model.layers[2].kernel.numpy())


# --- what does not fit


def wide():
    return keras.Sequential([layers.Dense(5), layers.BatchNormalization(), layers.Dense(2)])


def deep():
    return keras.Sequential([*sequential().layers, layers.Dense(2)])


def shallow():
    return keras.Sequential([layers.Dense(4), layers.BatchNormalization()])


def doubles():
    return keras.Sequential(
        [layers.Dense(4, dtype="float64"), layers.BatchNormalization(dtype="float64"), layers.Dense(2)]
    )


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            wide,
            r"'batch_normalization/beta' is float32\[4\], in the model float32\[5\].*'dense/kernel' is float32\[6, 4\]",
        ),
        (deep, "'dense_2/bias' is missing; 'dense_2/kernel' is missing"),
        (shallow, "'dense_1/bias' is not in the model; 'dense_1/kernel' is not in the model"),
        (doubles, r"'dense/bias' is float32\[4\], in the model float64\[4\]"),
    ],
)
def test_a_model_that_does_not_fit_is_told_all_differences(tmp_path, make, match):
    randomised(sequential, 1).save_weights(tmp_path / "w.safetensors")
    model = randomised(make, 2)
    before = values_of(model)
    with pytest.raises(SerializationError, match=match):
        model.load_weights(tmp_path / "w.safetensors")
    for old, new in zip(before, values_of(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_long_list_of_differences_is_cut(tmp_path):
    randomised(sequential, 1).save_weights(tmp_path / "w.safetensors")
    with pytest.raises(SerializationError, match=r"; and \d+ more\.$"):
        randomised(Subclass, 1).load_weights(tmp_path / "w.safetensors")


def with_other_shape(data):
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header["dense/kernel"]["shape"] = [6, 5]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "header cut": lambda data: data[:40],
    "header too long": lambda data: struct.pack("<Q", 1 << 60) + data[8:],
    "header no JSON": lambda data: data[:8] + b"!" + data[9:],
    "too long": lambda data: data + b"\0" * 4,
    "empty": lambda data: b"",
    "another shape": with_other_shape,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_changes_nothing(tmp_path, damage):
    path = tmp_path / "w.safetensors"
    model = randomised(sequential, 1)
    model.save_weights(path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    before = values_of(model)
    with pytest.raises(SerializationError, match="w.safetensors is damaged or no safetensors file"):
        model.load_weights(path)
    for old, new in zip(before, values_of(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_files_of_other_programs_and_versions(tmp_path):
    path = tmp_path / "w.safetensors"
    model = randomised(sequential, 1)
    model.save_weights(path)
    arrays = load_file(path)
    save_file(arrays, path)
    with pytest.raises(SerializationError, match="has the format None; this version reads 'disttensor.weights.1'"):
        model.load_weights(path)
    save_file(arrays, path, {"format": "disttensor.weights.1"})
    with pytest.raises(SerializationError, match=r"is damaged: '.*' is .*, marked as None"):
        model.load_weights(path)


@pytest.mark.parametrize("name", ["model.weights.h5", "model.keras", "weights", "weights.safetensors.tmp"])
def test_other_suffixes_are_refused(tmp_path, name):
    model = randomised(sequential, 1)
    for action in (model.save_weights, model.load_weights):
        with pytest.raises(ArgumentError, match=r"must end in '\.safetensors'"):
            action(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_a_model_without_weights_is_refused(tmp_path):
    for action, what in ((sequential().save_weights, "to save"), (sequential().load_weights, "to load into")):
        with pytest.raises(ArgumentError, match=f"has no weights {what} yet"):
            action(tmp_path / "w.safetensors")


def test_missing_files_and_folders(tmp_path):
    model = randomised(sequential, 1)
    with pytest.raises(FileNotFoundError):
        model.load_weights(tmp_path / "none.safetensors")
    model.save_weights(tmp_path / "a" / "b" / "w.safetensors")
    model.load_weights(tmp_path / "a" / "b" / "w.safetensors")


def test_overwriting_can_be_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    randomised(sequential, 1).save_weights(path, overwrite=False)
    before = path.read_bytes()
    with pytest.raises(ArgumentError, match="exists; pass overwrite=True"):
        randomised(sequential, 2).save_weights(path, overwrite=False)
    assert path.read_bytes() == before
    randomised(sequential, 2).save_weights(path)
    assert path.read_bytes() != before


def test_a_process_killed_while_saving_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    model = randomised(sequential, 1)
    model.save_weights(path)
    program = f"""
import os, signal
import disttensor as keras
model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(100)])
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
model.save_weights({str(path)!r})
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == -9
    model.load_weights(path)


def test_loading_steers_a_step_that_is_traced_already(tmp_path):
    model = randomised(sequential, 1)
    first = model.predict(X, verbose=0)
    model.save_weights(tmp_path / "w.safetensors")
    for variable in model.weights:
        variable.assign(variable.value * 0)
    assert not np.array_equal(model.predict(X, verbose=0), first)
    model.load_weights(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(model.predict(X, verbose=0), first)
