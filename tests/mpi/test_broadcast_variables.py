"""Variables get the values of rank 0, short ones in one message, and only if some differ."""

from __future__ import annotations

from tests.mpi.libraries import on_ranks

PROGRAM = """
import numpy as np

from disttensor import distributed
from disttensor.errors import DistributedError
from disttensor.tensor import Variable

rank = distributed.rank()
SHAPES = [(3,), (), (0, 2), (200, 100), (5, 7), (2, 2), (4,)]
DTYPES = ["float32", "float64", "float32", "float32", "bfloat16", "bool", "int64"]


def values(root):
    rng = np.random.default_rng(root)
    return [rng.integers(0, 2 if dtype == "bool" else 100, shape) for shape, dtype in zip(SHAPES, DTYPES, strict=True)]


variables = [Variable(v, dtype=dtype) for v, dtype in zip(values(rank), DTYPES, strict=True)]
before = [v.memory for v in variables]
distributed.broadcast_variables(v for v in variables)
for variable, memory, value in zip(variables, before, values(0), strict=True):
    assert variable.memory is memory
    np.testing.assert_array_equal(variable.numpy().astype("float64"), value)

calls = []
comm = distributed.communicator()
broadcast = comm.broadcast
comm.broadcast = lambda array, root=0: calls.append(array.nbytes) or broadcast(array, root)
distributed.broadcast_variables(variables)
assert calls == [], calls  # they are equal

variables[0].assign([rank, 2.0, 3.0])
snapshot = variables[0].value
distributed.broadcast_variables(variables)
assert calls == [sum(v.memory.nbytes for v in variables) - 80000, 80000], calls
assert variables[0].value.tolist() == [0.0, 2.0, 3.0] and snapshot.tolist() == [rank, 2.0, 3.0]

# As many bytes, but not the same.
odd = Variable(np.zeros((2, 3) if rank else (3, 2), "float32"))
try:
    distributed.broadcast_variables([variables[0], odd])
except DistributedError as error:
    assert "variable 1" in str(error) and "[2, 3]" in str(error) and "[3, 2]" in str(error), error
else:
    raise AssertionError("variables that differ were broadcast")
if rank == 0:
    print("every check passed", flush=True)
"""


@on_ranks(3, mpich=[2])
def test_variables_get_the_values_of_rank_0(mpirun, n):
    code, output = mpirun(n, PROGRAM)
    assert code == 0, output
    assert output.count("every check passed") == 1, output
