"""The short form of the campaign: every fault once, with the MPI libraries in turn.

The long form: ``python -m tests.faults``.
"""

from __future__ import annotations

import pytest

from tests.faults.campaign import FAULTS, Campaign, pythons

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
LIBRARIES = ("openmpi", "mpich")
WITH_BOTH = ("kill -9, then go on", "kill -9 in a save, then go on")
RUNS = [
    pytest.param(library, fault, id=f"{fault}-{LIBRARIES[library]}")
    for number, fault in enumerate(FAULTS)
    for library in range(2)
    if fault in WITH_BOTH or number % 2 == library
]


@pytest.fixture(scope="module")
def campaigns():
    return [Campaign(python, ranks=3) for python in pythons()]


@pytest.mark.parametrize(("library", "fault"), RUNS)
def test_promises_are_kept(campaigns, library, fault):
    if len(campaigns) <= library:
        pytest.skip("no environment with this MPI library; run `make setup`")
    run = campaigns[library].run(fault, seed=0)
    assert not run.problem, run.problem
    if fault == "kill -9, then go on":
        assert run.detected + run.launched + run.loaded < run.limit
