"""A NaN of one rank changes no weight of any; all ranks are told where it arose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.mpi.libraries import open_mpi_alone

PROGRAM = Path(__file__).with_name("not_finite_program.py")


@open_mpi_alone
@pytest.mark.parametrize("shards", ["", "6"], ids=["plain", "deterministic"])
def test_ranks_and_variables_are_named_and_no_weight_is_changed(mpirun: Any, shards: str) -> None:
    mode = {"DISTTENSOR_DETERMINISTIC": shards} if shards else {}
    kinds = ["nothing", "data", "weight", "sharded", *([] if shards else ["compressed", "eager"])]
    code, output = mpirun(3, PROGRAM, *kinds, env=mode)
    assert code == 0, output
    found = json.loads(output.splitlines()[-1])
    assert found["nothing"] == ""
    for kind in kinds[1:]:
        assert found[kind].startswith("step 3: the gradient of "), found
        assert "not finite on rank 1; no weight was changed" in found[kind], found
    assert "Not finite on rank 1 was already: dense" in found["weight"]
    assert "already" not in found["data"]
