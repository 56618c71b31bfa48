"""Machine code from IR: names, features, and the cache on disk."""

from __future__ import annotations

import ctypes
import functools
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from disttensor.kernels import disk_cache, linking, machine
from disttensor.kernels.native import NativeCall

ADD = """define i64 @f(i64 %x) {
  %y = call i64 @g(i64 %x)
  ret i64 %y
}
define internal i64 @g(i64 %x) {
  %y = add i64 %x, NUMBER
  ret i64 %y
}
"""


def call(address: int, x: int) -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(x))


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has loaded nothing, with an empty cache.

    The machine of the process stays alive meanwhile: its code is in use wherever an address of it is kept.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "_machine", functools.cache(machine._Machine))
    return tmp_path / "disttensor" / "code"


def test_modules_may_define_the_same_names() -> None:
    one, two = (machine.load(ADD.replace("NUMBER", n)) for n in ("1", "2"))
    assert (call(one["f"], 40), call(two["f"], 40)) == (41, 42)


def test_only_external_functions_are_given() -> None:
    assert set(machine.load(ADD.replace("NUMBER", "3"))) == {"f"}


def test_a_module_may_define_constants_and_call_the_c_library() -> None:
    text = """@table = private constant [3 x double] [double 1.0, double 4.0, double 9.0]
declare double @cbrt(double)
define double @f(i64 %i) {
  %p = getelementptr double, ptr @table, i64 %i
  %x = load double, ptr %p
  %y = call double @cbrt(double %x)
  ret double %y
}"""
    f = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int64)(machine.load(text)["f"])
    assert [f(i) for i in range(3)] == pytest.approx(np.cbrt([1, 4, 9]).tolist(), rel=1e-15)


def test_machine_code_is_kept_privately_and_found_again(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ADD.replace("NUMBER", "4")
    machine.load(text)
    assert stat.S_IMODE(os.stat(fresh).st_mode) == 0o700
    assert len(list(fresh.iterdir())) == 1
    machine._machine.cache_clear()
    monkeypatch.setattr(machine._Machine, "_compiler", None)
    assert call(machine.load(text)["f"], 1) == 5


@pytest.mark.parametrize("folder", ["code", "processors"])
def test_what_was_damaged_on_disk_is_made_again(fresh: Path, folder: str) -> None:
    text = ADD.replace("NUMBER", "6")
    machine.load(text)
    (file,) = (fresh.parent / folder).iterdir()
    good = file.read_bytes()
    for damaged in (b"", good[: len(good) // 2], good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]):
        file.write_bytes(damaged)
        machine._machine.cache_clear()
        assert call(machine.load(text)["f"], 1) == 7
        assert file.read_bytes() == good


def test_llvm_links_what_we_cannot(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linking, "link", lambda code: None)
    assert call(machine.load(ADD.replace("NUMBER", "7"))["f"], 1) == 8


def test_a_mask_switches_features_off(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ADD.replace("NUMBER", "5")
    machine.load(text)
    monkeypatch.setenv("DISTTENSOR_CPU_FEATURES", "-avx")
    machine._machine.cache_clear()
    assert not any(machine.has(feature) for feature in ("avx", "avx2", "fma", "avx512f", "avx512vl"))
    assert machine.vector_bytes() == 16
    machine.load(text)
    assert len(list(fresh.iterdir())) == 2  # code for the one is never used for the other


@pytest.mark.parametrize("mask", ["-avx512f", "-avx"])
def test_loops_give_the_same_bits_with_fewer_features(mask: str) -> None:
    script = (
        "import hashlib, numpy as np; from disttensor.kernels.loop import Loop, Step\n"
        "from disttensor.kernels.generated import bind\n"
        "x = np.random.default_rng(0).normal(size=1001).astype('float32'); y = np.empty_like(x)\n"
        "steps = (Step('square', (0,), 'float32'), Step('add', (1, 0), 'float32'), Step('sqrt', (2,), 'float32'))\n"
        "bind(Loop((('float32', 'full'),), steps, (3,)), [x], [y], 1)()\n"
        "print(hashlib.sha256(np.nan_to_num(y).tobytes()).hexdigest())"
    )
    results = set()
    for features in ("", mask):
        environment = {**os.environ, "DISTTENSOR_CPU_FEATURES": features}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        results.add(done.stdout)
    assert len(results) == 1


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert disk_cache.get_or_make("code", "x", lambda: b"made") == b"made"


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(disk_cache, "_MAX_FILES", 8)
    for number in range(30):
        disk_cache.get_or_make("code", str(number), lambda: b"x")
    assert len(list((tmp_path / "disttensor" / "code").iterdir())) <= 8


def test_structures_are_laid_out_as_the_processor_has_them() -> None:
    text = """%pair = type { i32, i64 }
define void @second(ptr %arguments, i64 %start, i64 %stop) {
  %out = load ptr, ptr %arguments
  %place = getelementptr %pair, ptr %out, i64 0, i32 1
  store i64 7, ptr %place
  ret void
}"""
    out = np.zeros(2, np.int64)
    NativeCall(machine.load(text)["second"], [out])()
    assert out.tolist() == [0, 7]


# It is made when so many processes want it; they wait for one another's turns for so many seconds.
MAKER = """
import os, sys, time
from pathlib import Path
from disttensor.kernels import disk_cache
folder, processes, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
def make():
    with open(folder / "log", "a") as log:
        log.write("made ")
    print("making", flush=True)
    while len(list(folder.glob("came-*"))) < processes:
        time.sleep(0.01)
    return b"made"
disk_cache._TURN_S = seconds
(folder / f"came-{os.getpid()}").touch()
assert disk_cache.get_or_make("code", "x", make) == b"made"
"""


def make_in_processes(folder: Path, count: int, *arguments: str) -> list[subprocess.Popen[str]]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
    command = [sys.executable, "-c", MAKER, str(folder), *arguments]
    return [subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) for _ in range(count)]


def test_one_process_makes_what_all_need(tmp_path: Path) -> None:
    processes = make_in_processes(tmp_path, 4, "4", "1000")
    assert sorted(process.communicate()[0] for process in processes) == ["", "", "", "making\n"]
    assert not any(process.returncode for process in processes)
    assert (tmp_path / "log").read_text() == "made "


def test_nobody_waits_long_for_a_process_that_makes_nothing(tmp_path: Path) -> None:
    (suspended,) = make_in_processes(tmp_path, 1, "1000", "0.5")
    assert suspended.stdout is not None
    assert suspended.stdout.readline() == "making\n"
    (other,) = make_in_processes(tmp_path, 1, "0", "0.5")
    assert other.communicate()[0] == "making\n"
    suspended.kill()
    suspended.communicate()
    assert (tmp_path / "log").read_text() == "made made "
