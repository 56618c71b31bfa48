"""Ranks that send compressed gradients: fewer bytes, nothing lost, and networks that learn nearly as well."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.mpi.libraries import on_ranks

PROGRAM = Path(__file__).with_name("compression_program.py")


@on_ranks(4, mpich=[2])
def test_compressed_gradients_train_on_digits(mpirun: Any, n: int) -> None:
    code, output = mpirun(n, PROGRAM)
    assert code == 0, output
    found = re.findall(r"^(\S+): accuracy (\S+), (\d+) bytes a step", output, re.MULTILINE)
    accuracy, sent = ({name: float(row[i]) for name, *row in found} for i in (0, 1))
    assert accuracy["none"] > 0.94
    for half in ("bfloat16", "float16"):
        assert accuracy[half] > accuracy["none"] - 0.02
        assert sent[half] < 0.51 * sent["none"]
    assert accuracy["PowerSGD(4)"] > accuracy["none"] - 0.03
    assert accuracy["PowerSGD(1)"] > accuracy["none"] - 0.1
    assert sent["PowerSGD(1)"] < sent["PowerSGD(4)"] < 0.12 * sent["none"]
