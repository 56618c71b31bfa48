from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import os
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttensor.datasets import files
from disttensor.errors import DataError
from tests.fuzzing import damaged

CONTENT = bytes(range(256)) * 9000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives `CONTENT`, or half of it, or an error, and counts requests."""

    def do_GET(self):
        self.server.requests += 1
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/cut" else CONTENT)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = 0
        server.url = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_missing_file_is_downloaded_once(server, tmp_path):
    target = tmp_path / "new" / "file.bin"
    for _ in range(2):
        assert files.fetch(target, server.url + "file", SHA256) == target
        assert target.read_bytes() == CONTENT
    assert server.requests == 1
    assert entries(target.parent) == [".file.bin.lock", "file.bin"]


def test_a_file_that_is_there_is_left_alone(tmp_path):
    target = tmp_path / "file.bin"
    target.write_bytes(b"mine")
    assert files.fetch(target, "http://nowhere.invalid/", SHA256).read_bytes() == b"mine"


def test_what_hashes_to_something_else_is_thrown_away(server, tmp_path):
    with pytest.raises(DataError, match=f"SHA-256 {SHA256}, expected {'0' * 64}"):
        files.fetch(tmp_path / "file.bin", server.url + "file", "0" * 64)
    assert entries(tmp_path) == [".file.bin.lock"]


def test_half_a_file_is_thrown_away(server, tmp_path):
    with pytest.raises(DataError, match=r"IncompleteRead|SHA-256"):
        files.fetch(tmp_path / "file.bin", server.url + "cut", SHA256)
    assert entries(tmp_path) == [".file.bin.lock"]


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_file_the_error_says_where_to_put_it(server, tmp_path, offline):
    url = "http://127.0.0.1:9/file" if offline else server.url + "missing"
    with pytest.raises(DataError) as caught:
        files.fetch(tmp_path / "file.bin", url, SHA256)
    assert str(tmp_path / "file.bin") in str(caught.value)
    assert url in str(caught.value)
    assert "DISTTENSOR_DATASETS" in str(caught.value)


def test_processes_of_a_machine_download_once(server, tmp_path):
    call = f"files.fetch(pathlib.Path({str(tmp_path / 'file.bin')!r}), {server.url + 'file'!r}, {SHA256!r})"
    command = [sys.executable, "-c", f"import pathlib; from disttensor.datasets import files; {call}"]
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert server.requests == 1


def test_the_lock_keeps_others_out_until_it_is_released(tmp_path):
    events = []

    def second():
        with files._locked(tmp_path / "lock"):
            events.append("second")

    with files._locked(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.05)
        events.append("first")
    thread.join()
    assert events == ["first", "second"]


def test_where_files_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTTENSOR_DATASETS", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert files.locate("a.npz") == tmp_path / "data" / "a.npz"
    assert files.locate(tmp_path / "b.npz") == tmp_path / "b.npz"
    (tmp_path / "a.npz").touch()
    assert files.locate("a.npz").resolve() == tmp_path / "a.npz"
    monkeypatch.delenv("DISTTENSOR_DATASETS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / ".cache" / "disttensor" / "datasets"


def save(path, **changes):
    arrays = {
        "x_train": np.arange(36, dtype=np.uint8).reshape(4, 3, 3),
        "y_train": np.array([0, 9, 1, 2], np.uint8),
        "x_test": np.zeros((2, 3, 3), np.uint8),
        "y_test": np.array([3, 4]),
    }
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return arrays


def test_npz_is_read_as_it_is(tmp_path):
    arrays = save(tmp_path / "a.npz")
    (x_train, y_train), (x_test, y_test) = files.read_npz(tmp_path / "a.npz", (3, 3))
    for array, name in ((x_train, "x_train"), (y_train, "y_train"), (x_test, "x_test"), (y_test, "y_test")):
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "no npz file with plain arrays"),
        ({"y_test": np.array([{}, {}], object)}, "no npz file with plain arrays"),
        ({"x_train": np.zeros((4, 3, 3))}, "images float64"),
        ({"y_train": np.zeros(4)}, "labels float64"),
        ({"x_train": np.zeros((4, 9), np.uint8)}, r"images \(4, 9\)"),
        ({"y_train": np.zeros(3, np.uint8)}, r"labels \(3,\)"),
        ({"y_train": np.array([0, 1, 2, 10])}, "labels from 0 to 10"),
        ({"x_test": np.zeros((0, 3, 3), np.uint8), "y_test": np.zeros(0, np.uint8)}, r"images \(0, 3, 3\)"),
    ],
)
def test_npz_with_other_arrays_is_refused(tmp_path, changes, message):
    save(tmp_path / "a.npz", **changes)
    with pytest.raises(DataError, match=message):
        files.read_npz(tmp_path / "a.npz", (3, 3))


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "npy", "absent"])
def test_npz_that_is_damaged_is_refused(tmp_path, damage):
    path = tmp_path / "a.npz"
    save(path)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[data.index(bytes(range(36))) + 5] ^= 1
        path.write_bytes(data)
    elif damage == "text":
        path.write_text("<html>not found</html>")
    elif damage == "npy":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.unlink()
    with pytest.raises(DataError, match="a.npz"):
        files.read_npz(path, (3, 3))


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 2)])
def test_idx_is_read_as_it_is(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(array)))
    np.testing.assert_array_equal(files.read_idx(tmp_path / "a.gz"), array)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not gzipped",
        gzip.compress(b"", mtime=0),
        gzip.compress(b"\0\0\x09\x01" + b"\0\0\0\4" + b"\0\0\0\0", mtime=0),
        gzip.compress(idx(np.zeros((2, 3), np.uint8))[:-1], mtime=0),
        gzip.compress(idx(np.zeros((2, 3), np.uint8)) + b"\0", mtime=0),
        gzip.compress(b"\0\0\x08\xff" + b"\xff" * 40, mtime=0),
        gzip.compress(idx(np.zeros((200, 3), np.uint8)), mtime=0)[:-9],
    ],
)
def test_idx_that_is_damaged_is_refused(tmp_path, data):
    (tmp_path / "a.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.gz"):
        files.read_idx(tmp_path / "a.gz")


def test_cve_2026_0897_a_bomb_is_not_unpacked(tmp_path):
    """64 MiB of zeros behind a head that says 2³⁰ bytes, or 1."""
    for length in (1 << 30, 1):
        (tmp_path / "a.gz").write_bytes(gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", length) + bytes(1 << 26)))
        with pytest.raises(DataError, match=r"a\.gz does not hold"):
            files.read_idx(tmp_path / "a.gz")


@pytest.mark.parametrize("shape", [(1 << 60,), (1 << 40, 1 << 40), (3, 1 << 31)])
def test_cve_2026_0897_arrays_of_npz_are_as_long_as_their_heads_say(tmp_path, shape):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", head.getvalue() + bytes(100))
    with pytest.raises(DataError, match="should have .* bytes and has 100"):
        files.read_npz(path, (3, 3))


def test_others_may_read_what_was_downloaded(server, tmp_path):
    target = files.fetch(tmp_path / "file.bin", server.url + "file", SHA256)
    assert os.stat(target).st_mode & 0o777 == 0o644


@settings(max_examples=300)
@given(data=st.data())
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path, data):
    """Nothing but DataError, whatever is wrong."""
    if not (tmp_path / "a.npz").exists():
        save(tmp_path / "a.npz")
        (tmp_path / "a.gz").write_bytes(gzip.compress(idx(np.zeros((3, 4), np.uint8)), mtime=0))
    name, read = data.draw(
        st.sampled_from([("a.npz", lambda path: files.read_npz(path, (3, 3))), ("a.gz", files.read_idx)])
    )
    path = tmp_path / f"damaged-{name}"
    path.write_bytes(data.draw(damaged((tmp_path / name).read_bytes())))
    with contextlib.suppress(DataError):
        read(path)


@pytest.mark.parametrize(("place", "change"), [(4, 0xFF), (6, 0x20), (6, 0x01), (8, 0x63)])
def test_archives_that_zipfile_does_not_know_are_refused(tmp_path, place, change):
    """Of a later version, patched, encrypted, packed in a way of its own."""
    save(tmp_path / "a.npz")
    content = bytearray((tmp_path / "a.npz").read_bytes())
    for start, more in ((content.index(b"PK\3\4"), 0), (content.index(b"PK\1\2"), 2)):
        content[start + place + more] = change
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a[.]npz is no npz file"):
        files.read_npz(tmp_path / "a.npz", (3, 3))
