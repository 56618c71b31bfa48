"""Manifests from strangers, who compute right checksums: whatever they say is believed only if it is there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

import disttensor as dt
from disttensor import cli
from disttensor.checkpoint import Checkpoint, CheckpointManager, find_checkpoints
from disttensor.checkpoint.lock import FolderLock
from disttensor.errors import SerializationError
from tests.fuzzing import altered


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tensors = {"w": np.arange(30, dtype=np.float32).reshape(5, 6), "empty": np.zeros((0, 3)), "z": np.ones(2, complex)}
    with CheckpointManager(folder) as manager:
        manager.save(1, tensors, state={"x": [1.5, "y", np.arange(3)]}, metrics={"loss": 1})
    return Path(find_checkpoints(folder)[0])


def write_manifest(checkpoint: Path, text: str) -> None:
    rest = b'", "manifest": ' + text.encode() + b"}\n"
    digest = xxhash.xxh3_128(rest).hexdigest().encode()
    (checkpoint / "manifest.json").write_bytes(b'{"xxh3_128": "' + digest + rest)


def read_all(checkpoint: Path) -> None:
    found = Checkpoint(checkpoint)
    found.verify()
    found.state()
    for name in found.manifest.tensors:
        found.array(name)


@settings(max_examples=150)
@given(data=st.data())
def test_whatever_a_manifest_says_it_is_used_or_refused(
    checkpoint: Path, data: st.DataObject, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing but SerializationError, whatever is wrong, and the commands show it or say so."""
    content = (checkpoint / "manifest.json").read_bytes()
    try:
        write_manifest(checkpoint, json.dumps(data.draw(altered(json.loads(content)["manifest"]))))
        codes = {action: cli.main(["checkpoint", action, str(checkpoint)]) for action in ("ls", "verify", "show")}
        try:
            read_all(checkpoint)
        except SerializationError:
            assert set(codes.values()) <= {0, 1, 2}
        else:
            assert set(codes.values()) == {0}
    finally:
        (checkpoint / "manifest.json").write_bytes(content)
        capsys.readouterr()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"state": ' * 100_000 + "1" + "}" * 100_000, "1" * 5000, "\0", ""])
def test_what_is_nested_too_deeply_or_no_json_is_refused(checkpoint: Path, text: str) -> None:
    content = (checkpoint / "manifest.json").read_bytes()
    whole = json.loads(content)["manifest"]
    try:
        for manifest in (text, json.dumps(whole).replace('"x"', f'"x": {text}, "y"')):
            write_manifest(checkpoint, manifest)
            with pytest.raises(SerializationError, match=r"manifest[.]json is malformed|nested too deeply"):
                read_all(checkpoint)
    finally:
        (checkpoint / "manifest.json").write_bytes(content)


@pytest.mark.parametrize("shape", [[1 << 62, 0], [0, 1 << 40, 1 << 40], [0] * 70])
def test_empty_tensors_have_shapes_that_are_possible(checkpoint: Path, shape: list[int]) -> None:
    content = (checkpoint / "manifest.json").read_bytes()
    manifest = json.loads(content)["manifest"]
    manifest["tensors"]["empty"][0] = shape
    try:
        write_manifest(checkpoint, json.dumps(manifest))
        with pytest.raises(SerializationError, match="which no array can have"):
            Checkpoint(checkpoint)
    finally:
        (checkpoint / "manifest.json").write_bytes(content)


def test_cve_2026_0897_a_manifest_that_is_huge_is_not_read(checkpoint: Path) -> None:
    """A file with a hole takes no room on the disk."""
    content = (checkpoint / "manifest.json").read_bytes()
    try:
        os.truncate(checkpoint / "manifest.json", 1 << 40)
        with pytest.raises(SerializationError, match="no manifest has so many"):
            Checkpoint(checkpoint)
    finally:
        (checkpoint / "manifest.json").write_bytes(content)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", b"[1]", b"[" * 4096, b'{"host": []}', b'"' + b"x" * 9000])
def test_whatever_a_lock_holds_the_folder_can_be_taken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".lock").write_bytes(content)
    FolderLock(str(tmp_path)).release()


def test_checkpoints_that_fit_did_not_save_are_told_from_its_own(tmp_path: Path) -> None:
    model = dt.Sequential([dt.layers.Dense(1)])
    model.compile("sgd", "mse")
    for state in (None, [1], {"epoch": 1}):
        with CheckpointManager(tmp_path) as manager:
            manager.save(1, {"w": np.zeros(3)}, state=state)
        with pytest.raises(SerializationError, match=r"was not saved by fit.*folder of its own"):
            model.fit(np.ones((8, 2)), np.ones((8, 1)), callbacks=[dt.callbacks.BackupAndRestore(tmp_path)], verbose=0)
