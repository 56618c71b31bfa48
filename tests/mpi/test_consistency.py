"""Ranks that would not train the same thing say so before the first step; ranks that drift apart are found out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.mpi.libraries import open_mpi_alone

PROGRAM = Path(__file__).with_name("consistency_program.py")

# What differs on rank 1 of 3, and what the error must say.
DIFFERENCES = {
    "bit of a weight": "after step 8 the ranks' variables are no longer equal:\n  dense",
    "bit of a slot": "\n  adam/",
    "seed": "seed (utils.set_random_seed): ranks 0, 2 have 1, rank 1 (host",
    "version": f'version of numpy: ranks 0, 2 have "{np.__version__}", rank 1 (host',
    "floatx": 'config.floatx(): ranks 0, 2 have "float32", rank 1 (host',
    "interval": "config.consistency_interval(): ranks 0, 2 have 4",
    "shards": "virtual shards (deterministic mode): ranks 0, 2 have [4, ",
    "rows": "rows: ranks 0, 2 have 40, rank 1 (host",
    "units": "layer 0 (Dense): units: ranks 0, 2 have 6, rank 1 (host",
    "activation": 'layer 0 (Dense): activation: ranks 0, 2 have "',
    "dtype": 'variable 0: ranks 0, 2 have [[8, 6], "float32"',
    "rate": "layer 1 (Dropout): rate: ranks 0, 2 have 0.1, rank 1 (host",
    "layers": "number of layers: ranks 0, 2 have 4, rank 1 (host",
    "wiring": 'wiring of model: call 2 (layer 3, Subtract): ranks 0, 2 have [[["call 0", "call 1"]], {}], rank 1 (host',
    "wiring within": 'wiring of layer 0: call 2 (layer 3, Subtract): ranks 0, 2 have [[["call 0", "call 1"]], {}]',
    "bias": "layer 2 (Dense): use_bias: ranks 0, 2 have true, rank 1 (host",
    "frozen": "not trainable",
    "learning rate": "optimizer: learning_rate: ranks 0, 2 have 0.1",
    "schedule": "optimizer: learning_rate.decay_steps: ranks 0, 2 have 10, rank 1 (host",
    "optimizer": "optimizer: class: ranks 0, 2 have",
    "loss": "compile(): loss.ignore_class: ranks 0, 2 have null, rank 1 (host",
    "metrics": 'compile(): metrics: ranks 0, 2 have ["accuracy"], rank 1 (host',
    "eager": "compile(): run_eagerly: ranks 0, 2 have false, rank 1 (host",
    "epochs": "fit(): epochs: ranks 0, 2 have 2, rank 1 (host",
    "batch size": "fit(): batch_size: ranks 0, 2 have 8, rank 1 (host",
    "checkpoint": "fit(): callbacks that all ranks must have: ranks 0, 2 have [], rank 1 (host",
    "method": "what comes next, and nothing was changed:\n  they are at: ranks 0, 2 have the call of fit(), rank 1",
}
HARMLESS = ["nothing", "another model before", "what prints"]


@open_mpi_alone
def test_differences_between_ranks_are_named(mpirun: Any) -> None:
    code, output = mpirun(3, PROGRAM, *DIFFERENCES, *HARMLESS)
    assert code == 0, output
    found = json.loads(output.splitlines()[-1])
    assert [found[name] for name in HARMLESS] == [""] * len(HARMLESS)
    for name, text in DIFFERENCES.items():
        assert text in found[name], (name, found[name])
        if "bit" in name:
            assert found[name].startswith("after step 8 the ranks' variables are no longer equal:\n")
            assert "rank 1 (host" in found[name]
            assert "differs from the others" in found[name]
        else:
            assert "nothing was changed" in found[name]


def test_with_two_ranks_nobody_can_say_which_is_right(mpirun: Any) -> None:
    code, output = mpirun(2, PROGRAM, "bit of a weight")
    assert code == 0, output
    assert "kernel float32[6, 4]: ranks 0, 1 differ" in json.loads(output.splitlines()[-1])["bit of a weight"]
