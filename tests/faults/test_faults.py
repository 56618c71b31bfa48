"""The short form of the campaign: every fault once with each MPI library. The long form: ``python -m tests.faults``."""

from __future__ import annotations

import pytest

from tests.faults.campaign import FAULTS, Campaign, pythons

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=range(2), ids=["openmpi", "mpich"])
def campaign(request):
    found = pythons()
    if len(found) <= request.param:
        pytest.skip("no environment with this MPI library; run `make setup`")
    return Campaign(found[request.param], ranks=3)


@pytest.mark.parametrize("fault", FAULTS)
def test_promises_are_kept(campaign, fault):
    run = campaign.run(fault, seed=0)
    assert not run.problem, run.problem
    if fault == "kill -9, then go on":
        assert run.detected + run.launched + run.loaded < 30
