"""Compilation: lazy, cached where it can be, safe with forks; and results that no number of threads changes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from disttensor import config
from disttensor.kernels import _jit, blas


@_jit.kernel()
def _twice(x: float) -> float:
    return 2 * x


@_jit.kernel(parallel=True)
def _fill(out: np.ndarray, x: float) -> None:
    for i in _jit_range(out.shape[0]):
        out[i] = _twice(x) / i


_jit_range = range


def _run(program: str, **environment: str) -> str:
    """Standard output of a Python program in a fresh process, where warnings are errors."""
    names = ("DISTTENSOR_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    base = {name: value for name, value in os.environ.items() if name not in names}
    base["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-Werror", "-c", program], env=base | environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_kernel_calls_kernels_and_divides_like_numpy() -> None:
    out = np.empty(3)
    _fill(out, 1.5)
    np.testing.assert_array_equal(out, [np.inf, 3, 1.5])


def test_numba_is_imported_at_the_first_call() -> None:
    program = """
import sys
from disttensor.kernels import convolution, indexing, philox, pooling, special
assert "numba" not in sys.modules
special.erf(1.0)
assert "numba" in sys.modules
"""
    _run(program)


def test_without_a_cache_folder() -> None:
    """A file stands where the folder should be."""
    program = "from disttensor.kernels import _jit, special\nprint(special.erf(0.0), _jit._cache_directory())"
    assert _run(program, XDG_CACHE_HOME="/dev/null", NUMBA_CACHE_DIR="").split() == ["0.0", "None"]


def test_the_cache_is_private_and_used(tmp_path: Path) -> None:
    program = "from disttensor.kernels import special\nspecial.erf(0.0)\nprint(special._erf_wide.dispatcher().stats)"
    assert "cache_hits=Counter()" in _run(program, XDG_CACHE_HOME=str(tmp_path), NUMBA_CACHE_DIR="")
    (folder,) = (tmp_path / "disttensor").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert "cache_misses=Counter()" in _run(program, XDG_CACHE_HOME=str(tmp_path), NUMBA_CACHE_DIR="")


def test_a_full_disk_costs_only_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from numba.core import caching

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_jit, "_cache_directory", lambda: tmp_path)
    monkeypatch.setattr(caching.IndexDataCacheFile, "save", fail)
    kernel = _jit.Kernel(_twice.__wrapped__, parallel=False)
    assert kernel(2.0) == 4.0


KERNELS = """
import hashlib, sys
import numpy as np
from disttensor.kernels import _jit, convolution, depthwise, indexing, philox, pooling, special

rng = np.random.default_rng(0)
digest = hashlib.sha256()
def add(function, out, *arguments, **options):
    function(out, *arguments, **options)
    digest.update(out.tobytes())

state = np.array([1, 2], np.uint32)
for fill in (philox.uniform, philox.normal):
    add(fill, np.empty(100_001, np.float32), state, 3)
x = np.empty((16, 20, 20, 24), np.float32)
philox.normal(x, state, 5)
kernel = rng.normal(size=(3, 3, 24, 32)).astype(np.float32)
y = np.empty((16, 18, 18, 32), np.float32)
options = dict(strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1))
add(convolution.convolve, y, x, kernel, **options)
add(convolution.convolve_input_gradient, np.empty_like(x), y, kernel, **options)
add(convolution.convolve_kernel_gradient, np.empty_like(kernel), x, y, **options)
few = np.ascontiguousarray(kernel[..., :10])  # filters that do not fill vectors
add(convolution.convolve, y[..., :10].copy(), x, few, **options)
add(convolution.convolve_kernel_gradient, np.empty_like(few), x, y[..., :10], **options)
each = np.ascontiguousarray(kernel[..., 0])
add(depthwise.depthwise, y[..., :24].copy(), x, each, **options)
add(depthwise.depthwise_input_gradient, np.empty_like(x), y[..., :24], each, **options)
add(depthwise.depthwise_kernel_gradient, np.empty_like(each), x, y[..., :24], **options)
pool = dict(pool_size=(2, 2), strides=(1, 1), padding=((0, 0), (0, 0)))
add(pooling.max_pool_gradient, np.empty_like(x), x, x[:, 1:, 1:], **pool)
add(indexing.scatter_add_rows, np.empty((3000, 24), np.float32), rng.integers(0, 3000, 6400), x.reshape(6400, 24))
add(lambda out: special.erf(x, out=out), np.empty_like(x))
"""


def test_bits_do_not_depend_on_threads() -> None:
    program = KERNELS + "print(digest.hexdigest(), *_jit._threading_layer.cache_info())"
    one = _run(program, DISTTENSOR_THREADS="1", NUMBA_NUM_THREADS="2", OPENBLAS_NUM_THREADS="1").split()
    two = _run(program, DISTTENSOR_THREADS="2", NUMBA_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2").split()
    assert one[0] == two[0]
    # Only the second started threads.
    assert (one[-1], two[-1]) == ("0", "1")


def test_a_forked_child_runs_kernels() -> None:
    program = """
import os
import numpy as np
from disttensor.kernels import blas, philox
state = np.array([1, 2], np.uint32)
parent, child = np.empty(100_000, np.float32), np.empty(100_000, np.float32)
philox.uniform(parent, state, 0)
blas.for_each(len, [[], [1]])
pid = os.fork()
if pid == 0:
    philox.uniform(child, state, 0)
    os._exit(0 if (parent == child).all() and blas.for_each(len, [[], [1]]) == [0, 1] else 1)
assert os.waitpid(pid, 0)[1] == 0
"""
    _run(program, DISTTENSOR_THREADS="2", NUMBA_NUM_THREADS="2")


@pytest.fixture
def two_threads() -> object:
    before = config.threads()
    config.set_threads(2)
    yield
    config.set_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_for_each_keeps_order_errors_and_numpy_settings() -> None:
    assert blas.for_each(lambda n: n * n, range(50)) == [n * n for n in range(50)]
    assert blas.for_each(len, []) == []
    with pytest.raises(ZeroDivisionError):
        blas.for_each(lambda n: 1 // n, [1, 2, 0, 3])
    with np.errstate(all="raise"):
        assert {s["over"] for s in blas.for_each(lambda _: np.geterr(), range(20))} == {"raise"}


def test_blas_threads_are_given_back() -> None:
    control = blas._openblas()
    if control is None:
        pytest.skip("numpy is not linked with OpenBLAS")
    get, set_ = control
    before = get()
    set_(2)
    try:
        with blas.single_threaded(), blas.single_threaded():
            assert get() == 1
        assert get() == 2
    finally:
        set_(before)
