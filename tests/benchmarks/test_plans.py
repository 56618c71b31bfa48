"""What `replay` and `profile` see of a plan."""

from __future__ import annotations

import numpy as np
import pytest

import disttensor as dt
from benchmarks.activities.plans import Profile, Replay, describe
from benchmarks.contestants import OURS

JOB = {"contestant": OURS, "workload": "W1", "steps": 6}


def test_replay_times_steps_and_replays_of_the_same_batches() -> None:
    replay = Replay(JOB)
    for _ in range(2):
        answer = replay.round()
        assert len(answer["seconds"]) == len(answer["replay_seconds"]) == 6
        assert min(*answer["seconds"], *answer["replay_seconds"]) > 0
        assert sum(count for count, _ in answer["stretches"]) == 8  # all but the first


def test_profile_names_every_kernel_call() -> None:
    profile = Profile(JOB)
    answer = profile.round()
    # Two layers forward, two gradients of weights, one of an input.
    assert profile.ready["names"].count("matrix_product") == 5
    assert [len(log) for log in answer["call_seconds"]] == [6] * len(profile.ready["names"])


def test_nodes_are_those_of_the_calls() -> None:
    """A call that is replaced changes the result of just the node of the same number."""

    @dt.function
    def f(x: dt.Tensor) -> dt.Tensor:
        return dt.ops.sum(dt.ops.reshape(dt.ops.matmul(x, x), (4,)), axis=0)

    x = np.ones((2, 2), np.float32)
    plan = f.plan(x)
    assert [node.name for node, _ in plan.calls] == ["matrix_product", "reduce_sum"]
    assert describe(plan.calls[0][0]) == "matrix_product 2×2, 2×2 → 2×2"
    assert plan.run([x])[0] == pytest.approx(8)
    plan.calls = (plan.calls[0], (plan.calls[1][0], lambda: plan.outputs[0].fill(-1)))
    assert plan.run([x])[0] == pytest.approx(-1)
