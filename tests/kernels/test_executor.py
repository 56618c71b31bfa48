"""The executor: order, threads, floating-point state, and that neither forks nor busy helpers stop it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from disttensor import config
from disttensor.kernels import executor, machine
from disttensor.kernels.codegen import Literal, Loop, Step, source
from disttensor.kernels.native import NativeCall, NativeSequence, segments

SIZE, GRAIN = 1 << 12, 1 << 6
TRIPLE_AND_ONE = Loop(
    (("float32", "full"),), (Step("multiply", (0, Literal(3.0)), "float32"), Step("add", (1, Literal(1.0)), "float32")),
    (2,),
)  # fmt: skip


def step(x: np.ndarray, out: np.ndarray, grain: int = GRAIN) -> NativeCall:
    return NativeCall(machine.load(source(TRIPLE_AND_ONE))["loop"], [x, out, 1], x.size, grain)


def chain(length: int, grain: int = GRAIN) -> tuple[NativeSequence, np.ndarray, np.ndarray]:
    """A sequence that computes 3x+1 again and again, from x, and where the result will be."""
    arrays = [np.zeros(SIZE, np.float32) for _ in range(length + 1)]
    return NativeSequence([step(a, b, grain) for a, b in zip(arrays, arrays[1:], strict=False)]), arrays[0], arrays[-1]


def iterate(x: np.ndarray, length: int) -> np.ndarray:
    for _ in range(length):
        x = x * np.float32(3) + np.float32(1)
    return x


@pytest.fixture(params=[1, 2, 4])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(config, "_threads", request.param)
    return int(request.param)


def test_each_instruction_sees_all_that_the_one_before_wrote(threads: int) -> None:
    run, x, result = chain(20)
    rng = np.random.default_rng(0)
    for _ in range(200):
        x[:] = rng.normal(size=SIZE)
        run()
        assert result.tobytes() == iterate(x, 20).tobytes()


def test_programs_on_several_threads_at_once(threads: int) -> None:
    failures: list[int] = []

    def work(seed: int) -> None:
        run, x, result = chain(10)
        x[:] = np.random.default_rng(seed).normal(size=SIZE)
        expected = iterate(x, 10).tobytes()
        for _ in range(100):
            result[:] = 0
            run()
            if result.tobytes() != expected:
                failures.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_an_empty_program_and_an_empty_extent() -> None:
    NativeSequence([])()
    out = np.zeros(4, np.float32)
    NativeCall(machine.load(source(TRIPLE_AND_ONE))["loop"], [out, out, 1], 0)()
    assert out.tolist() == [0] * 4


def test_it_computes_without_denormals_and_leaves_the_callers_state(threads: int) -> None:
    run, x, result = chain(1, SIZE // 8)
    tiny = np.float32(1e-39)
    x[:] = -1 / np.float32(3)
    x[::7] = tiny
    out = np.empty_like(x)
    halve = Loop((("float32", "full"),), (Step("multiply", (0, Literal(0.5)), "float32"),), (1,))
    NativeCall(machine.load(source(halve))["loop"], [x, out, 1], SIZE, SIZE // 8)()
    assert not out[::7].any()
    run()
    assert tiny * np.float32(0.5) > 0
    with pytest.raises(FloatingPointError), np.errstate(divide="raise"):
        np.float32(1) / np.float32(0)


def test_segments_join_what_is_native_and_keep_the_order() -> None:
    run, x, result = chain(2)
    seen: list[float] = []
    first, second = run
    program = segments([first, second, lambda: seen.append(float(result[0])), run])
    assert [type(call).__name__ for call in program] == ["NativeSequence", "function", "NativeSequence"]
    for call in program:
        call()
    assert seen == [4.0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_has_helpers_of_its_own() -> None:
    script = f"""
import os, sys
import numpy as np
sys.path.insert(0, {os.path.dirname(__file__)!r})
from disttensor import config
config.set_threads(2)
import test_executor as t
run, x, result = t.chain(10)
x[:] = 2
run()
child = os.fork()
result[:] = 0
for _ in range(50):
    run()
good = result.tobytes() == t.iterate(x, 10).tobytes()
if child == 0:
    os._exit(0 if good else 1)
assert good and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_splits_are_left_out_while_they_do_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    if not executor.HAS_THREADS:
        pytest.skip("no helpers on this system")
    monkeypatch.setattr(config, "_threads", 2)
    run, x, result = chain(20)
    x[:] = 1
    run()
    skip_and_backoff = executor._pool().skip_and_backoff
    skip_and_backoff[:] = 50, 50
    run()
    assert skip_and_backoff.tolist() == [50 - 20, 50]
    assert result.tobytes() == iterate(x, 20).tobytes()
