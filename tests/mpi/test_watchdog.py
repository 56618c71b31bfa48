"""A collective that waits in vain ends the job, and says for whom it waits, where all ranks are, and what they do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.mpi.libraries import open_mpi_alone

PROGRAM = Path(__file__).with_name("hang_program.py")

# What rank 1 does, and what must be said of it.
DEEDS = {
    "loader": [r"rank 1 \(host .*\): reading data, step 3; ", r"in hang_in_loader$", r"in batches$"],
    "regular expression": [
        r"rank 1 \(host .*\): its threads were last heard of \d+ s ago; ",
        r"in hang_in_regular_expression$",
    ],
    "deadlock": [r"rank 1 \(host .*\): in callbacks, step 3; ", r"in hang_in_deadlock$", r"lock\.acquire\(\)$"],
    "other collective": [
        r"rank 1 \(host .*\): in callbacks, step 3; waits in barrier\(\) \(collective \d+ of ranks 0.*\) for \d+ s",
        r"in on_train_batch_begin$",
        r"group\.barrier\(\)$",
    ],
    "suspended": [r"rank 1 \(host .*\): is suspended by a signal; "],
    "suspended in compute": [r"rank 1 \(host .*\): is suspended by a signal; .*computing, step 4; all_reduce\(.* last"],
    "suspended in a collective": [
        r"rank 1 \(host .*\): is suspended by a signal; .*computing, step 4; waits in all_red"
    ],
}


@pytest.mark.parametrize(
    ("mpirun", "deed", "n"),
    [
        *(("openmpi", deed, 2) for deed in DEEDS),
        ("mpich", "loader", 4),
        ("mpich", "suspended", 2),
    ],
    indirect=["mpirun"],
)
def test_a_rank_that_hangs_is_named_with_its_stack(mpirun: Any, deed: str, n: int) -> None:
    code, output = mpirun(n, PROGRAM, deed)
    assert code != 0
    assert re.search(r"\[rank \d\] all_reduce\(.*\) \(collective \d+ of all ranks\) has lasted for \d+ s", output), (
        output
    )
    # Whose messages were sent when it was suspended may hold up the next collective instead.
    has_arrived = "|All ranks have arrived, but rank 1 is suspended by a signal" if deed.endswith("collective") else ""
    assert re.search(rf"(It waits for rank 1{has_arrived})\.\n", output), output
    for pattern in DEEDS[deed]:
        assert re.search(pattern, output, re.MULTILINE), (pattern, output)
    for rank in {*range(n)} - {1}:
        assert re.search(rf"rank {rank} \(host .*\): (computing|in callbacks), step 4; waits in all_reduce", output), (
            output
        )
    assert re.search(r"MainThread:", output)
    assert "disttensor-" not in re.sub(r'File ".*"', "", output)
    assert output.count("has lasted for") == 1, output


@open_mpi_alone
def test_slow_ranks_are_no_alarm(mpirun: Any) -> None:
    code, output = mpirun(3, PROGRAM, "slow")
    assert (code, output) == (0, "trained, limit 6\n")


@open_mpi_alone
def test_time_in_which_a_rank_was_suspended_does_not_count(mpirun: Any) -> None:
    code, output = mpirun(2, PROGRAM, "suspended for a while")
    assert (code, output) == (0, "trained, limit 600\n")


@open_mpi_alone
def test_no_limit(mpirun: Any) -> None:
    code, output = mpirun(2, PROGRAM, "nothing", env={"DISTTENSOR_TIMEOUT": "0"})
    assert (code, output) == (0, "trained, limit 0\n")


@open_mpi_alone
def test_bad_limit(mpirun: Any) -> None:
    code, output = mpirun(2, PROGRAM, "nothing", env={"DISTTENSOR_TIMEOUT": "soon"})
    assert code != 0
    assert "DISTTENSOR_TIMEOUT='soon' must be a number of seconds" in output
