"""Files from strangers: each class of hole that Keras had gets a test, named by its CVE.

Those of checkpoints are in ``tests/checkpoint``, those of data sets in ``tests/datasets``.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import marshal
import os
import pickle
import re
import struct
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import disttensor as dt
from disttensor.errors import ArgumentError, DataError, SerializationError
from disttensor.saving.registration import deserialize_keras_object
from tests.fuzzing import altered, damaged


class Bomb:
    """Whoever unpickles it writes a file."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self):
        return (open, (str(self._path), "w"))


def bytecode(path: Path) -> str:
    return base64.b64encode(marshal.dumps(compile(f"open({str(path)!r}, 'w')", "<file>", "exec"))).decode()


CODE = {
    "2024-3660": lambda path: {"class_name": "Lambda", "config": {"function": [bytecode(path), None, None]}},
    "2025-1550": lambda path: {"module": "builtins", "class_name": "exec", "config": f"open({str(path)!r}, 'w')"},
    "2025-8747": lambda path: {
        "module": "keras.src.utils.file_utils",
        "class_name": "function",
        "config": "get_file",
        "registered_name": "function",
    },
    "2025-9906": lambda path: {
        "module": "keras.config",
        "class_name": "function",
        "config": "enable_unsafe_deserialization",
    },
    "2025-49655": lambda path: {
        "class_name": "TorchModuleWrapper",
        "config": {"module": base64.b64encode(pickle.dumps(Bomb(path))).decode()},
    },
    "2026-1462": lambda path: {"class_name": "TFSMLayer", "config": {"filepath": str(path.parent)}},
    "2026-12481": lambda path: {
        "module": "subprocess",
        "class_name": "Popen",
        "config": {"args": ["touch", str(path)]},
    },
    "2025-12058": lambda path: {"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}},
}


@pytest.mark.parametrize("cve", CODE)
def test_cve_a_configuration_runs_imports_and_reads_nothing(tmp_path, cve):
    config = CODE[cve](tmp_path / "ran")
    with contextlib.suppress(SerializationError, ArgumentError):
        assert deserialize_keras_object(config) == config  # what does not look like ours is data
    assert not (tmp_path / "ran").exists()


def model() -> dt.Model:
    return dt.Sequential([dt.Input((3,)), dt.layers.Dense(2)])


@pytest.fixture(scope="module")
def file() -> bytes:
    """Weights of `model`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w.weights.safetensors")
        model().save_weights(path)
        return path.read_bytes()


def load(content: bytes, folder: Path) -> None:
    path = folder / "w.weights.safetensors"
    path.write_bytes(content)
    model().load_weights(path)


def test_cve_2025_49655_a_pickle_is_not_unpickled(tmp_path):
    with pytest.raises(SerializationError, match="damaged or no safetensors"):
        load(pickle.dumps(Bomb(tmp_path / "ran")), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".keras", ".pkl", ".pt"])
def test_cve_2025_9905_and_2026_1669_other_formats_are_not_opened(tmp_path, suffix):
    """HDF5 can hold links to other files, and the older formats code."""
    with pytest.raises(ArgumentError, match=r"must end in"):
        model().load_weights(tmp_path / f"w{suffix}")


def forged(file: bytes, change) -> bytes:
    """The file with another head."""
    (length,) = struct.unpack_from("<Q", file)
    head = json.loads(file[8 : 8 + length])
    change(head)
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + file[8 + length :]


@pytest.mark.parametrize("shape", [[1 << 60], [1 << 40, 1 << 40], [3, 1 << 31]])
def test_cve_2026_0897_sizes_are_compared_with_the_bytes_that_are_there(tmp_path, file, shape):
    def grow(head):
        for name, entry in head.items():
            if name != "__metadata__":
                entry["shape"] = shape
                entry["data_offsets"] = [0, 4 * int(np.prod(shape, dtype=object))]

    with pytest.raises(SerializationError):
        load(forged(file, grow), tmp_path)


@pytest.mark.parametrize("length", [1 << 62, 1 << 40, (1 << 64) - 1])
def test_cve_2026_0897_a_huge_head_is_refused(tmp_path, file, length):
    with pytest.raises(SerializationError):
        load(struct.pack("<Q", length) + file[8:], tmp_path)


def test_cve_2026_0897_a_file_with_a_hole_takes_no_memory(tmp_path, file):
    """Bytes that are there, but take no room on the disk; the model says how much there should be."""
    size = 1 << 40

    def grow(head):
        for name in [name for name in head if name.endswith("kernel")]:
            head[name] |= {"shape": [size // 4], "data_offsets": [0, size]}
        for name in [name for name in head if name.endswith("bias")]:
            head[name] |= {"data_offsets": [size, size + 8]}

    content = forged(file, grow)
    path = tmp_path / "w.weights.safetensors"
    length = 8 + struct.unpack_from("<Q", content)[0]
    path.write_bytes(content[:length])
    os.truncate(path, length + size + 8)
    with pytest.raises(SerializationError, match=r"'dense/kernel' is float32\[\d+\], in the model float32\[3, 2\]"):
        model().load_weights(path)


@settings(max_examples=150)
@given(data=st.data())
def test_whatever_a_file_holds_it_is_loaded_or_refused(file, data):
    """Nothing but SerializationError, whatever is wrong."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(SerializationError):
        load(data.draw(damaged(file)), Path(folder))


@settings(max_examples=150)
@given(data=st.data())
def test_whatever_the_head_of_a_file_says_it_is_loaded_or_refused(file, data):
    def alter(head):
        changed = data.draw(altered(dict(head)))
        head.clear()
        head.update(changed if isinstance(changed, dict) else {"": changed})

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(SerializationError):
        load(forged(file, alter), Path(folder))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F4", "BF16", "I8", "C64"])
def test_values_that_numpy_does_not_know_are_refused(tmp_path, file, dtype):
    bits = int(re.search(r"\d+", dtype)[0])

    def change(head):
        offset = 0
        for name, entry in head.items():
            if name != "__metadata__":
                entry["dtype"], end = dtype, offset + int(np.prod(entry["shape"])) * bits // 8
                entry["data_offsets"], offset = [offset, end], end
        sizes.append(offset)

    sizes = []
    content = forged(file, change)
    length = 8 + struct.unpack_from("<Q", content)[0]
    with pytest.raises(SerializationError):
        load(content[:length] + bytes(sizes[0]), tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/tmp/disttensor-outside", "cifar-10-batches-bin/../../outside"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_cve_2024_55459_and_2025_12060_an_archive_writes_nothing(tmp_path, name, kind):
    """Members are read in memory, by the names that are expected."""
    (tmp_path / "inside").mkdir()
    archive = tmp_path / "inside" / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        if kind == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
        else:
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="is not the binary version"):
        dt.datasets.cifar10.load_data(archive)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/disttensor-outside").exists()
