"""`CheckpointManager`: what is saved comes back, what is damaged is noticed, a kill or a full disk loses nothing."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import disttensor as dt
from disttensor import dtypes
from disttensor.checkpoint import Checkpoint, CheckpointManager, disk, find_checkpoints
from disttensor.checkpoint.manifest import Manifest
from disttensor.checkpoint.shards import share
from disttensor.distributed.partition import Term
from disttensor.errors import ArgumentError, CheckpointError, SerializationError


def variables(seed: int = 0) -> dict[str, dt.Variable]:
    rng = np.random.default_rng(seed)
    shapes = [(), (0, 3), (5,), (3, 4)]
    return {
        f"{dtype}/{i}": dt.Variable(rng.integers(0, 2, shape).astype(dtypes.to_numpy(dtype)), dtype=dtype)
        for dtype in dtypes.ALL
        for i, shape in enumerate(shapes)
    }


def save(folder: Path, step: int, seed: int | None = None) -> None:
    with CheckpointManager(folder, keep=9) as manager:
        manager.save(step, variables(step if seed is None else seed), state={"step": step, "a": np.arange(3)})


def test_every_dtype_and_the_state_come_back(tmp_path: Path) -> None:
    save(tmp_path, 7)
    with CheckpointManager(tmp_path) as manager:
        found = manager.latest()
        assert found is not None
        target = variables(99)
        manager.restore(found, target)
    for name, expected in variables(7).items():
        assert target[name].memory.tobytes() == expected.memory.tobytes(), name
    state = found.state()
    assert state["step"] == found.step == 7
    np.testing.assert_array_equal(state["a"], np.arange(3))


def test_a_term_comes_back_as_it_was_to_as_many_ranks_and_else_as_a_share_of_the_sum(tmp_path: Path) -> None:
    def term(value: float, ranks: int) -> dt.Variable:
        made = dt.Variable(np.full(3, value, "float32"))
        made.partition = Term(SimpleNamespace(size=ranks, all_reduce=lambda own: own + 9))
        return made

    with CheckpointManager(tmp_path) as manager:
        manager.save(7, {"x": term(1.0, ranks=2)})
        found = manager.latest()
        assert found is not None
        for ranks, expected in ((2, 1.0), (5, 2.0), (1, 10.0)):
            target = term(0.0, ranks)
            manager.restore(found, {"x": target})
            assert target.numpy().tolist() == [expected] * 3
        assert found.array("x").tolist() == [10.0] * 3


def test_the_library_safetensors_reads_a_shard(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    save(tmp_path, 1)
    (path,) = Path(find_checkpoints(tmp_path)[0]).glob("*.safetensors")
    found, expected = load_file(path), variables(1)
    for name, variable in expected.items():
        if variable.dtype not in dtypes.COMPLEX:
            assert found[name].tobytes() == variable.memory.tobytes(), name
            assert found[name].shape == variable.shape


@pytest.mark.parametrize("folder", ["", "/dev/shm"], ids=["disk", "memory"])
@pytest.mark.parametrize("direct", [True, False])
def test_large_tensors_whose_edges_fit_no_block_come_back(
    tmp_path: Path, folder: str, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the system's memory to the disk, or, where the file system cannot do that, through it."""
    if not direct:
        monkeypatch.setattr(disk, "_go_straight", lambda descriptor, wanted: False)
    sizes = [3, disk.CHUNK - 7, 2 * disk.CHUNK + 4097, 0, disk.CHUNK]
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.integers(0, 100, size, np.uint8) for i, size in enumerate(sizes)}
    with tempfile.TemporaryDirectory(dir=folder or tmp_path) as name, CheckpointManager(name) as manager:
        manager.reserve(arrays)
        manager.save(1, arrays)
        (path,) = Path(manager.checkpoints[0]).glob("*.safetensors")
        shard = Manifest.read(str(path.parent)).shards[0]
        assert path.stat().st_size == shard.bytes
        found = manager.latest()
        assert found is not None
        for key, expected in arrays.items():
            np.testing.assert_array_equal(found.array(key), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 50])
def test_shares_of_ranks_are_all_there_is_and_nothing_twice(size: int) -> None:
    arrays = {name: v.memory for name, v in variables().items()}
    elements = {name: [] for name in arrays}
    for rank in range(size):
        for piece in share(arrays, rank, size):
            elements[piece.tensor] += range(piece.first, piece.first + piece.count)
    assert elements == {name: list(range(a.size)) for name, a in arrays.items()}


def test_order_is_that_of_numbers_whatever_their_length(tmp_path: Path) -> None:
    names = ["1000000-step-3", "000002-step-9", "999999-step-1"]
    for name in names:
        (tmp_path / name).mkdir()
    assert [Path(path).name for path in find_checkpoints(tmp_path)] == [names[1], names[2], names[0]]


def test_newest_and_best_stay(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, keep=2, keep_best=1, monitor="loss") as manager:
        for step, loss in enumerate([3.0, 1.0, 2.0, float("nan"), 5.0]):
            manager.save(step, {"v": np.zeros(3)}, metrics={"loss": loss})
        assert [Checkpoint(path).step for path in manager.checkpoints] == [1, 3, 4]


def best(folder: Path, mode: str) -> int | None:
    with CheckpointManager(folder, monitor="score", mode=mode) as manager:
        found = manager.best()
    return None if found is None else found.step


def test_the_best_is_found_by_its_metric(tmp_path: Path) -> None:
    assert best(tmp_path, "max") is None
    scores = [None, 3, np.float32(5), float("nan"), 5.0, 1.0]
    with CheckpointManager(tmp_path, keep=9) as manager:
        for step, score in enumerate(scores):
            manager.save(step, {"v": np.zeros(3)}, metrics={} if score is None else {"score": score})
    assert best(tmp_path, "max") == 2  # of equal ones the older
    assert best(tmp_path, "min") == 5
    damage(Path(find_checkpoints(tmp_path)[2]) / "shard-00000-of-00001.safetensors", "bit")
    with pytest.warns(UserWarning, match="000003-step-2 is left out"):
        assert best(tmp_path, "max") == 4
    damage(Path(find_checkpoints(tmp_path)[4]) / "manifest.json", "bit")
    with pytest.warns(UserWarning, match="000003-step-2 is left out"):
        assert best(tmp_path, "max") == 1


@pytest.mark.parametrize("value", ["0.5", None, [1.0], np.ones(2)])
def test_metrics_are_numbers(tmp_path: Path, value: object) -> None:
    with CheckpointManager(tmp_path) as manager, pytest.raises(ArgumentError, match="metrics are numbers; 'loss' is"):
        manager.save(1, {"v": np.zeros(3)}, metrics={"loss": value})  # type: ignore[dict-item]
    assert find_checkpoints(tmp_path) == []


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "longer":
        path.write_bytes(content + b"x")
    elif kind == "bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["missing", "truncated", "longer", "bit"])
@pytest.mark.parametrize("name", ["manifest.json", "shard-00000-of-00001.safetensors"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, name: str, kind: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(Path(find_checkpoints(tmp_path)[-1]) / name, kind)
    with CheckpointManager(tmp_path) as manager, pytest.warns(UserWarning, match=f"000002-step-2 is left out.*{name}"):
        found = manager.latest()
    assert found is not None
    assert found.step == 1


def test_swapped_shards_are_noticed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    first, second = (Path(p) / "shard-00000-of-00001.safetensors" for p in find_checkpoints(tmp_path))
    shutil.copy(first, second)
    with pytest.raises(SerializationError, match="damaged"):
        Checkpoint(second.parent).verify()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    with CheckpointManager(folder) as manager:
        manager.save(1, {"w": np.arange(3000, dtype=np.float32)}, state={"x": [1.5, "y"]})
    return Path(find_checkpoints(folder)[0])


@settings(max_examples=150)
@given(data=st.data())
def test_any_flipped_bit_or_truncation_is_noticed(small: Path, tmp_path: Path, data: st.DataObject) -> None:
    copy = tmp_path / small.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(small, copy)
    path = copy / data.draw(st.sampled_from(sorted(p.name for p in small.iterdir())))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[data.draw(st.integers(0, (len(content) - 1) // 4096)) * 4096 :]
    path.write_bytes(content)
    with pytest.raises(SerializationError, match=path.name):
        Checkpoint(copy).verify()


def test_a_cut_at_every_block_is_noticed_and_the_checkpoint_before_is_used(tmp_path: Path) -> None:
    for step in (1, 2):
        with CheckpointManager(tmp_path) as manager:
            manager.save(step, {f"w{i}": np.full(300, step + i, np.float64) for i in range(100)})
    newest = Path(find_checkpoints(tmp_path)[-1])
    assert all(path.stat().st_size > 8192 for path in newest.iterdir())
    for path in newest.iterdir():
        content = path.read_bytes()
        for size in range(0, len(content), 4096):
            os.truncate(path, size)
            with CheckpointManager(tmp_path) as manager, pytest.warns(UserWarning, match=f"left out.*{path.name}"):
                found = manager.latest()
            assert found is not None
            assert found.step == 1
            path.write_bytes(content)
    Checkpoint(newest).verify()


def forged(small: Path, folder: Path, **changes: object) -> Path:
    """A copy whose manifest was changed by somebody who computes a right checksum."""
    shutil.copytree(small, folder)
    manifest = Manifest.read(str(folder))
    (folder / "manifest.json").write_bytes(Manifest(**vars(manifest) | changes).to_bytes())
    return folder


def test_cve_2026_1669_nothing_outside_the_folder_is_opened(small: Path, tmp_path: Path) -> None:
    shards = Manifest.read(str(small)).shards
    outside = [type(shards[0])("../secret", shards[0].bytes, shards[0].digest)]
    with pytest.raises(SerializationError, match="names a shard"):
        Checkpoint(forged(small, tmp_path / "a", shards=outside))
    copy = forged(small, tmp_path / "b")
    shard = copy / shards[0].name
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SerializationError, match="is a link"):
        Checkpoint(copy).verify()


def test_cve_2026_0897_sizes_are_checked_before_memory_is_asked_for(small: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(str(small))
    info = manifest.tensors["w"]
    cases = [((1 << 60,), "elements"), ((1 << 40, 1 << 40), "no array can have"), ((3001,), "elements")]
    for number, (shape, words) in enumerate(cases):
        huge = {"w": type(info)(shape, "float32", info.parts)}
        with pytest.raises(SerializationError, match=words):
            Checkpoint(forged(small, tmp_path / f"a{number}", tensors=huge))
    part = info.parts[0]
    big = type(part)(part.shard, part.offset, 0, 1 << 50, part.digest)
    with pytest.raises(SerializationError, match="beyond the end"):
        Checkpoint(forged(small, tmp_path / "b", tensors={"w": type(info)((1 << 50,), "float32", (big,))}))
    many = {f"w{i}": info for i in range(10)}
    with pytest.raises(SerializationError, match="beyond the end"):
        Checkpoint(forged(small, tmp_path / "c", tensors=many))


@pytest.mark.parametrize("cve", ["2024-3660", "2025-1550", "2025-9906"])
def test_cve_code_in_a_file_is_never_run(small: Path, tmp_path: Path, cve: str) -> None:
    state = {"module": "os", "class_name": "system", "config": "touch ran", "__reduce__": ["os.system", "touch ran"]}
    found = Checkpoint(forged(small, tmp_path / cve, state=state))
    assert found.state() == state
    assert not Path("ran").exists()


def test_a_second_job_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    manager.open()
    with pytest.raises(CheckpointError, match=f"being written by process {os.getpid()} on"):
        CheckpointManager(tmp_path).open()
    program = "import sys, disttensor; disttensor.checkpoint.CheckpointManager(sys.argv[1]).open()"
    command = [sys.executable, "-c", program, str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "Two jobs must not share" in refused.stderr
    manager.close()
    assert subprocess.run(command, capture_output=True).returncode == 0


SAVES = """
import os, signal, sys
import numpy as np
from disttensor.checkpoint import CheckpointManager, disk
manager = CheckpointManager(sys.argv[1], keep=1)
def save(step):
    manager.save(step, {"w": np.full(300_000, step, np.float64)}, state={"step": step})
save(1)
left = int(sys.argv[2])
def count(operation, path):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
disk.observer = count
save(2)
print("survived", int(sys.argv[2]) - left)
"""


def test_a_kill_before_any_operation_of_a_save_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    outcomes = []
    for number in range(1, 60):
        folder = tmp_path / str(number)
        ended = subprocess.run([sys.executable, "-c", SAVES, str(folder), str(number)], capture_output=True, text=True)
        with CheckpointManager(folder) as manager:
            manager.open()  # what was left by the killed job is no obstacle
            found = manager.latest()
            assert found is not None, f"killed before operation {number}"
            np.testing.assert_array_equal(found.array("w"), np.full(300_000, found.step))
        assert found.state() == {"step": found.step}
        assert not [name for name in os.listdir(folder) if name.startswith(".unfinished")]
        outcomes.append(found.step)
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ended.returncode == 0, "there were more operations than expected"
    assert number > 10
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {1, 2}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with CheckpointManager(tmp_path) as manager:
            manager.save(1, {"w": np.zeros(1000)})
            with pytest.raises(CheckpointError, match="No space left on device.*as they were: 000001-step-1"):
                manager.save(2, {"w": np.zeros(1 << 20)})
            found = manager.latest()
            assert found is not None
            assert found.step == 1
            assert not [name for name in os.listdir(tmp_path) if name.startswith(".unfinished")]
            manager.save(3, {"w": np.zeros(1000)})
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_a_file_system_that_became_read_only_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """As the kernel does it when a disk has errors."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    manager = CheckpointManager(tmp_path)
    try:
        manager.save(1, {"w": np.arange(10)})
        manager.close()  # else the lock is open for writing, and the kernel refuses
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        with pytest.raises(OSError, match="Read-only file system"):
            manager.save(2, {"w": np.zeros(10)})
        np.testing.assert_array_equal(Checkpoint(find_checkpoints(tmp_path)[-1]).array("w"), np.arange(10))
    finally:
        manager.close()
        subprocess.run(["umount", tmp_path], check=True)


WITHOUT_RIGHTS = """
import os, sys
import numpy as np
from disttensor.checkpoint import CheckpointManager
manager = CheckpointManager(sys.argv[1])
manager.open()
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
try:
    manager.save(2, {"w": np.zeros(10)})
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_folder_without_permission_leaves_the_checkpoint_before() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are root's alone
        folder = Path(name, "run")
        save(folder, 1)
        Path(name).chmod(0o755)
        folder.chmod(0o555)  # root may write all the same, so the process becomes somebody else
        command = [sys.executable, "-c", WITHOUT_RIGHTS, str(folder)]
        said = subprocess.run(command, capture_output=True, text=True)
        folder.chmod(0o755)
        assert "CheckpointError a checkpoint could not be saved" in said.stdout, said.stderr
        assert "Permission denied" in said.stdout
        assert "as they were: 000001-step-1" in said.stdout
        Checkpoint(find_checkpoints(folder)[-1]).verify()


def test_a_limit_for_files_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """Python ignores SIGXFSZ, so that the write itself fails, as with a quota."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, {"w": np.zeros(1000)})
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            with pytest.raises(CheckpointError, match="safetensors: File too large.*as they were: 000001-step-1"):
                manager.save(2, {"w": np.zeros(1 << 20)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        manager.save(3, {"w": np.zeros(1 << 20)})
        assert [Checkpoint(path).step for path in manager.checkpoints] == [1, 3]


def test_an_error_in_any_operation_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """As a disk that dies: it surfaces as CheckpointError, and a later save succeeds."""
    steps, reasons = [], set()
    with CheckpointManager(tmp_path, keep=1) as manager:
        manager.save(0, {"w": np.zeros(1000)})
        for number in itertools.count(1):
            left = number

            def fail(operation: str, path: str) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), path)

            disk.observer = fail
            try:
                manager.save(number, {"w": np.full(1000, number)})
            except CheckpointError as error:
                reasons.add("Input/output error" in str(error))
            finally:
                disk.observer = None
            steps.append(Checkpoint(manager.checkpoints[-1]).step)
            Checkpoint(manager.checkpoints[-1]).verify()
            if left > 0:
                break
            manager.save(number, {"w": np.full(1000, number)})
            assert Checkpoint(manager.checkpoints[-1]).step == number
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".unfinished")]
    assert number > 10
    assert reasons == {True}
    assert {before < after for before, after in zip(range(number), steps, strict=False)} == {False, True}


def test_a_failed_writer_surfaces_at_the_next_poll(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "folder")
    manager.save(1, {"w": np.zeros(10)})
    manager._make_folder = lambda: (2, str(tmp_path / "folder" / "gone"))  # type: ignore[method-assign]
    manager.save(2, {"w": np.zeros(10)}, wait=False)
    with pytest.raises(CheckpointError, match="gone.*No such file.*000001-step-1"):
        manager.wait()
    manager.close()
