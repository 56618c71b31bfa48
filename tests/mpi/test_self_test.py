"""Ranks that find out which all-reduce is faster: once, all alike, and what it changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disttensor.distributed.self_test import LENGTHS
from tests.mpi.libraries import open_mpi_alone

HERE = Path(__file__).parent
EVERYWHERE, NOWHERE, SHORT, LONG, IN_BACKGROUND = (
    [[1e-5, 1e-6 if length in library else 1e-5, 1e-6 if length in background else 1e-5] for length in LENGTHS]
    for library, background in ((LENGTHS, LENGTHS), ((), ()), (LENGTHS[:1], ()), (LENGTHS[2:], ()), ((), LENGTHS[1:]))
)

# Groups that sum now and in the background, some sums of each length; and at which lengths the library does.
CHOICE = """
import numpy as np
from disttensor import distributed
from disttensor.distributed import background, library, world
comm = distributed.communicator()
total = sum(range(1, comm.size + 1))
background.open_channel(world.data_group())
started = background._channel_of(world.data_group())._started
now, later = [], []
for nbytes in (1 << 9, 1 << 10, 1 << 11, 1 << 15, 1 << 18, 1 << 21, 1 << 22):
    for i in range(3):
        before = started.reducer and started.reducer.entered
        x = comm.shared_empty((nbytes // 4,), np.float32)
        x.fill(comm.rank + 1)
        y = x.copy()
        handle = background.start(x, [(x.size, 1.0)])
        comm.all_reduce(y)
        handle.wait()
        assert (x == total).all() and (y == total).all()
    z = np.full(3, float(comm.rank))
    assert comm.all_reduce(z, "max")[0] == comm.size - 1
    ready = comm._ready["sum", y.dtype, y.nbytes]
    now += [nbytes] * (ready is not None and isinstance(ready.call, library.Sum))
    later += [nbytes] * (started.reducer is None or started.reducer.entered == before)
choices = comm.all_gather_object([now, later])
assert choices == choices[:1] * comm.size, choices
if comm.rank == 0:
    print(now, later)
"""
ALL = [1 << 9, 1 << 10, 1 << 11, 1 << 15, 1 << 18, 1 << 21, 1 << 22]
OURS = "[] []\n"


class Run:
    """Starts programs on ranks, where measurements find these times."""

    def __init__(self, mpirun: Any, folder: Path) -> None:
        self._mpirun, self.folder = mpirun, folder
        self.choice = folder / "choice.py"
        self.choice.write_text(CHOICE)

    def __call__(self, seconds: Any, *program: Any, n: int = 2, **env: str) -> str:
        env = {"FOLDER": str(self.folder / "kept"), "DISTTENSOR_TUNING": "1", **env}
        program = program or (self.choice,)
        code, output = self._mpirun(n, HERE / "self_test_program.py", json.dumps(seconds), *map(str, program), env=env)
        assert code == 0, output
        return output

    @property
    def record(self) -> Path:
        (path,) = (self.folder / "kept").iterdir()
        return path


@pytest.fixture
def run(mpirun: Any, tmp_path: Path) -> Run:
    return Run(mpirun, tmp_path)


def test_measured_once_and_read_from_then_on_by_rank_0(run):
    assert run(NOWHERE) == f"{OURS}1 measurements\n"
    assert run(EVERYWHERE) == f"{OURS}0 measurements\n"
    run.record.write_text("{}")
    # What speaks for the library is measured twice. Without rank 0's cache the others could not know.
    assert run(SHORT) == f"{ALL[:2]} []\n2 measurements\n"
    assert run(NOWHERE) == f"{ALL[:2]} []\n0 measurements\n"
    run.record.unlink()
    assert run(NOWHERE) == f"{OURS}1 measurements\n"


@open_mpi_alone
@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (EVERYWHERE, f"{ALL} {ALL[1:]}\n"),
        (LONG, f"{ALL[4:]} []\n"),
        (IN_BACKGROUND, f"[] {ALL[3:]}\n"),
    ],
)
def test_sums_are_right_whatever_was_found(run, seconds, expected):
    assert run(seconds, n=3) == f"{expected}2 measurements\n"


@open_mpi_alone
@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"DISTTENSOR_ALLREDUCE": "shared"}, OURS),
        ({"DISTTENSOR_ALLREDUCE": "mpi"}, f"{ALL} {ALL}\n"),
        ({"DISTTENSOR_TUNING": "0"}, OURS),
        ({"DISTTENSOR_DETERMINISTIC": "2"}, OURS),
        ({"CORES": "1"}, OURS),
    ],
)
def test_nothing_is_measured_or_read_where_it_is_said_what_to_use(run, env, expected):
    assert run(EVERYWHERE) == f"{ALL} {ALL[1:]}\n2 measurements\n"
    content = run.record.read_bytes()
    assert run(EVERYWHERE, **env) == f"{expected}0 measurements\n"
    assert run.record.read_bytes() == content


@open_mpi_alone
def test_a_cache_that_cannot_be_written_is_done_without(run):
    assert run(SHORT, FOLDER="/dev/null/kept") == f"{ALL[:2]} []\n2 measurements\n"


@open_mpi_alone
def test_where_nothing_was_found_it_is_ours(run):
    assert run(None) == f"{OURS}1 measurements\n"
    assert run(EVERYWHERE) == f"{OURS}0 measurements\n"  # for an hour
    record = json.loads(run.record.read_bytes())
    run.record.write_text(json.dumps(record | {"at": record["at"] - 3600}))
    assert run(SHORT) == f"{ALL[:2]} []\n2 measurements\n"


@pytest.mark.parametrize("mpirun", ["openmpi", "mpich"], indirect=True)
def test_what_this_machine_says_is_obeyed(mpirun, tmp_path):
    """A real measurement: whatever it finds, a second run goes by it."""
    program = f"from disttensor.distributed import self_test\nself_test.FOLDER = {str(tmp_path / 'kept')!r}\n{CHOICE}"
    first, second = (mpirun(2, program, env={"DISTTENSOR_TUNING": "1"}) for _ in range(2))
    assert first.code == 0, first.output
    assert first == second


# A model with long weights, of which ranks may have one copy, and short ones; batches of which some ranks have no rows.
FIT = """
import sys
import numpy as np
import disttensor as keras
from disttensor import distributed
keras.utils.set_random_seed(0)
rng = np.random.default_rng(3)
x, y = rng.normal(size=(49, 150)).astype("float32"), rng.integers(0, 5, 49)
layers = [keras.layers.Dense(units, activation="relu") for units in (300, 200, 20)]
model = keras.Sequential([keras.Input((150,)), *layers, keras.layers.BatchNormalization(), keras.layers.Dense(5)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
history = model.fit(x, y, batch_size=16, epochs=4, verbose=0, validation_data=(x, y)).history
flat = np.concatenate([v.numpy().reshape(-1) for v in model.variables] + [np.array(history[k]) for k in history])
assert len({a for a in distributed.communicator().all_gather_object(flat.tobytes().hex())}) == 1
if distributed.rank() == 0:
    np.save(sys.argv[1], flat)
"""


@open_mpi_alone
@pytest.mark.parametrize("single_copy", ["0", "1"])
def test_training_is_right_whatever_was_found(run, single_copy):
    """Also where machine code sums some gradients, and updates weights with one copy, and the library sums others."""
    program, results = run.folder / "fit.py", []
    program.write_text(FIT)
    for name, seconds in {"ours": NOWHERE, "all": EVERYWHERE, "long": IN_BACKGROUND, "short": SHORT}.items():
        env = {"FOLDER": str(run.folder / name), "DISTTENSOR_SINGLE_COPY": single_copy}
        output = run(seconds, program, run.folder / f"{name}.npy", **env)
        assert output == f"{1 if name == 'ours' else 2} measurements\n"
        results.append(np.load(run.folder / f"{name}.npy"))
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-4, atol=1e-5)
