from __future__ import annotations

import contextlib
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import disttensor as keras
from disttensor.data import make_adapter
from disttensor.data.image_folder import _decode
from disttensor.data.resizing import resize_image
from disttensor.errors import ArgumentError, DataError
from disttensor.utils import image_dataset_from_directory
from tests.fuzzing import damaged


def folder(path, counts, size=(6, 5), mode="RGB", ending="png"):
    """Images in a subfolder for each class; the first pixel of a file is its number."""
    rng, number = np.random.default_rng(0), 0
    for name, count in counts.items():
        (path / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (*size, len(mode)), np.uint8)
            pixels[0, 0] = number
            Image.fromarray(pixels if len(mode) > 1 else pixels[..., 0]).save(path / name / f"{i:03}.{ending}")
            number += 1
    return path


def load(path, **options):
    return image_dataset_from_directory(path, **{"image_size": (6, 5), "shuffle": False, "verbose": False, **options})


def numbers(dataset):
    return [int(n) for x, *_ in map(_first, dataset) for n in x[:, 0, 0, 0]]


def _first(batch):
    return batch if isinstance(batch, tuple) else (batch,)


def test_images_and_labels(tmp_path, capsys):
    dataset = load(folder(tmp_path, {"b": 3, "a": 2}), batch_size=4, verbose=True)
    assert capsys.readouterr().out == "Found 5 files belonging to 2 classes.\n"
    assert dataset.class_names == ["a", "b"]
    assert dataset.file_paths == [
        str(tmp_path / p) for p in (["a/000.png", "a/001.png", "b/000.png", "b/001.png", "b/002.png"])
    ]
    assert len(dataset) == 2
    batches = list(dataset)
    assert [y.tolist() for _, y in batches] == [[0, 0, 1, 1], [1]]
    assert batches[0][0].shape == (4, 6, 5, 3)
    assert (batches[0][0].dtype, batches[0][1].dtype) == (np.float32, np.int32)
    for path, image in zip(dataset.file_paths, np.concatenate([x for x, _ in batches]), strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(path)))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("int", [0, 1]), ("categorical", [[1, 0], [0, 1]]), ("binary", [[0], [1]]), (None, None)],
)
def test_label_modes(tmp_path, mode, expected):
    ((_, *y),) = map(_first, load(folder(tmp_path, {"a": 1, "b": 1}), label_mode=mode))
    assert [part.tolist() for part in y] == ([] if expected is None else [expected])


def test_labels_that_are_given(tmp_path):
    folder(tmp_path, {"a": 2, "b": 1})
    ((_, y),) = load(tmp_path, labels=[7, 5, 6])
    assert y.tolist() == [7, 5, 6]
    assert numbers(load(tmp_path, labels=None)) == [0, 1, 2]
    ((_, y),) = load(tmp_path, class_names=["b", "a"])
    assert y.tolist() == [0, 1, 1]


@pytest.mark.parametrize(("color", "channels"), [("grayscale", 1), ("rgb", 3), ("rgba", 4)])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_channels(tmp_path, color, channels, data_format):
    ((x, _),) = load(folder(tmp_path, {"a": 2}, mode="L"), color_mode=color, data_format=data_format)
    image = x[1] if data_format == "channels_last" else np.moveaxis(x[1], 0, -1)
    assert image.shape == (6, 5, channels)
    for channel in range(min(channels, 3)):
        np.testing.assert_array_equal(image[..., channel], np.asarray(Image.open(tmp_path / "a" / "001.png")))


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_split_has_every_image_once(tmp_path, shuffle):
    path = folder(tmp_path, {"a": 7, "b": 4})
    options = {"validation_split": 0.3, "shuffle": shuffle, "seed": 3}
    training, validation = load(path, subset="both", **options)
    assert (training.num_samples, validation.num_samples) == (8, 3)
    parts = [numbers(training), numbers(validation)]
    assert sorted(sum(parts, [])) == list(range(11))
    assert (parts[1] == [8, 9, 10]) == (not shuffle)
    for subset, dataset in (("training", training), ("validation", validation)):
        alone = load(path, subset=subset, **options)
        assert alone.file_paths == dataset.file_paths
        assert numbers(alone) == numbers(dataset)
        assert alone.class_names == ["a", "b"]
        for (x, y), name in zip(alone, [alone.file_paths], strict=True):
            assert ["ab"[label] for label in y] == [p.split("/")[-2] for p in name]
            np.testing.assert_array_equal(x[0], np.asarray(Image.open(name[0])))


def test_shuffled_training_sees_other_orders_of_the_same_images(tmp_path):
    dataset = load(folder(tmp_path, {"a": 30}), shuffle=True, seed=1, batch_size=8)
    epochs = [[int(n) for b in make_adapter(dataset).epoch(e) for n in b.x[:, 0, 0, 0]] for e in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(30))


def test_a_network_learns_from_a_folder(tmp_path):
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.fromarray(np.full((9, 9, 3), level + i, np.uint8)).save(tmp_path / name / f"{i}.jpg")
    keras.utils.set_random_seed(0)
    dataset = load(tmp_path, image_size=(4, 4), shuffle=True, batch_size=8, label_mode="binary")
    model = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.BatchNormalization(), keras.layers.Dense(1, "sigmoid")]
    )
    model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy", metrics=["accuracy"])
    history = model.fit(dataset, epochs=8, verbose=0)
    assert history.history["accuracy"][-1] == 1.0


@pytest.mark.keras_oracle
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(7, 9), (20, 11), (64, 48), (31, 5), (24, 36)])
def test_sizes_are_those_of_keras(rng, interpolation, fit, size):
    from keras import ops

    image = rng.integers(0, 256, (24, 36, 3), np.uint8)
    expected = ops.image.resize(
        image.astype("float32"), size, interpolation, crop_to_aspect_ratio=fit == "crop",
        pad_to_aspect_ratio=fit == "pad", data_format="channels_last",
    )  # fmt: skip
    np.testing.assert_allclose(resize_image(image, size, interpolation, fit), np.asarray(expected), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"label_mode": "float"}, ArgumentError, "label_mode must be one of"),
        ({"color_mode": "hsv"}, ArgumentError, "color_mode must be one of"),
        ({"interpolation": "lanczos3"}, ArgumentError, "interpolation must be one of"),
        ({"subset": "training"}, ArgumentError, "needs validation_split"),
        ({"validation_split": 1.5, "subset": "both"}, ArgumentError, "between 0 and 1"),
        ({"validation_split": 0.5}, ArgumentError, "subset must be one of"),
        ({"validation_split": 0.5, "subset": "both", "shuffle": True}, ArgumentError, "needs a seed"),
        ({"crop_to_aspect_ratio": True, "pad_to_aspect_ratio": True}, ArgumentError, "exclude each other"),
        ({"labels": "guessed"}, ArgumentError, "labels must be 'inferred'"),
        ({"labels": [1]}, DataError, r"labels have shape \(1,\), but there are 2 images"),
        ({"class_names": ["a", "c"]}, DataError, "are not the subfolders"),
        ({"label_mode": "binary"}, DataError, "needs two classes"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        load(folder(tmp_path, {"a": 2}), **options)


def test_folders_and_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match="nothing"):
        load(tmp_path / "nothing")
    with pytest.raises(DataError, match="no images"):
        load(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"x.png is no readable image"):
        list(load(tmp_path))
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a" / "x.png")
    with pytest.raises(DataError, match=r"more than 8 bits a channel"):
        list(load(tmp_path))


@pytest.mark.parametrize("ending", ["png", "jpeg", "gif", "bmp"])
@settings(max_examples=100)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it mends by itself
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path, ending, data):
    """Nothing but DataError, whatever is wrong."""
    path = tmp_path / f"x.{ending}"
    Image.fromarray(np.arange(90, dtype=np.uint8).reshape(5, 6, 3)).save(path)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    with contextlib.suppress(DataError):
        _decode(str(path), "RGB")


def test_cve_2026_0897_a_bomb_is_not_unpacked(tmp_path):
    """A head that says 50000 × 50000 pixels, before a file of a few."""
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(tmp_path / "x.bmp")
    content = bytearray((tmp_path / "x.bmp").read_bytes())
    content[18:26] = struct.pack("<2i", 50_000, 50_000)
    (tmp_path / "x.bmp").write_bytes(content)
    with pytest.raises(DataError, match="exceeds limit of"):
        _decode(str(tmp_path / "x.bmp"), "RGB")


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "PPM", "ICO"])
def test_only_the_formats_that_names_are_of_are_decoded(tmp_path, kind):
    """Pillow goes by content, and hands EPS to a program, which runs what is in it."""
    with open(tmp_path / "x.png", "wb") as file:
        Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(file, kind)
    with pytest.raises(DataError, match="no readable image"):
        _decode(str(tmp_path / "x.png"), "RGB")


def test_pillow_is_asked_for(tmp_path):
    folder(tmp_path, {"a": 1})
    program = f"""
import sys
sys.modules["PIL"] = None
from disttensor.utils import image_dataset_from_directory
list(image_dataset_from_directory({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'disttensor[images]'" in done.stderr
