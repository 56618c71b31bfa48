"""A trace has every event in its place, is valid, and leaves plans as they were."""

from __future__ import annotations

import json

import numpy as np
import pytest

import disttensor as keras
from disttensor.callbacks.timeline import Event, as_trace
from disttensor.distributed import activity
from disttensor.errors import ArgumentError
from tests.training.fitting import X, Y, linear


def nests(events):
    """Whether no two events of a track overlap without one holding the other; to a nanosecond."""
    for track in {(e["pid"], e["tid"]) for e in events}:
        open_until = []
        mine = [e for e in events if (e["pid"], e["tid"]) == track]
        for event in sorted(mine, key=lambda e: (e["ts"], -e["dur"])):
            while open_until and open_until[-1] <= event["ts"] + 1e-3:
                open_until.pop()
            if open_until and event["ts"] + event["dur"] > open_until[-1] + 1e-3:
                return False
            open_until.append(event["ts"] + event["dur"])
    return True


def spans(path):
    content = json.loads(path.read_text())
    return [e for e in content["traceEvents"] if e["ph"] == "X"], content


def test_steps_are_recorded_and_plans_are_as_before(tmp_path):
    path = tmp_path / "trace.json"
    model = linear()
    model.compile("sgd", "mse")
    timeline = keras.callbacks.Timeline(path, first_step=3, steps=2)
    model.fit(X, Y, 5, epochs=2, verbose=0, callbacks=[timeline])
    assert activity.observer is None
    (plan,) = model.train_function.plans
    assert not any(type(call).__name__ == "partial" and "_timed" in repr(call) for _, call in plan.calls)
    events, content = spans(path)
    assert nests(events)
    assert [e["name"] for e in events if e["cat"] == "part"].count("computing") == 2
    assert sum(e["cat"] == "operator" for e in events) == 2 * len(plan.calls)
    names = [e["args"]["name"] for e in content["traceEvents"] if e["ph"] == "M"]
    assert names[0].startswith("rank 0 (")
    assert names[1] == "MainThread"
    computing = [e for e in events if e["name"] == "computing"]
    for operator in (e for e in events if e["cat"] == "operator"):
        assert any(c["ts"] <= operator["ts"] <= c["ts"] + c["dur"] for c in computing)


def test_a_training_that_ends_before_the_first_step_to_record_warns(tmp_path):
    model = linear()
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match=r"ended after 2 steps, and first_step is 3; .*trace.json will show no step"):
        model.fit(X, Y, len(X) // 2, verbose=0, callbacks=[keras.callbacks.Timeline(tmp_path / "trace.json", 3)])
    assert spans(tmp_path / "trace.json")[0] == []


def test_results_are_the_same(tmp_path):
    found = []
    for callbacks in ([], [keras.callbacks.Timeline(tmp_path / "trace.json", 1)]):
        model = linear()
        model.compile("adam", "mse")
        model.fit(X, Y, 5, epochs=2, verbose=0, shuffle=False, callbacks=callbacks)
        found.append(model.get_weights())
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_goes_on_in_the_background_gets_as_many_tracks_as_it_needs():
    events = [
        Event("communication", "all_reduce", start, end, 8, "MainThread") for start, end in ((0, 2), (1, 4), (3, 5))
    ]
    trace = as_trace(2, "a", events)
    tracks = [e["tid"] for e in trace if e["ph"] == "X"]
    assert tracks[0] == tracks[2] != tracks[1]
    assert nests([e for e in trace if e["ph"] == "X"])
    assert trace[-1]["args"] == {"bytes": 8}
    assert trace[-1]["dur"] == 2e6


def test_overlapping_events_do_not_nest():
    event = {"pid": 0, "tid": 0, "dur": 10.0}
    assert not nests([{**event, "ts": 0.0}, {**event, "ts": 5.0}])


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"first_step": 0}, {"steps": 1.5}])
def test_bad_arguments(tmp_path, arguments):
    with pytest.raises(ArgumentError, match="positive int"):
        keras.callbacks.Timeline(tmp_path / "trace.json", **arguments)


def test_missing_folder(tmp_path):
    with pytest.raises(ArgumentError, match="does not exist"):
        keras.callbacks.Timeline(tmp_path / "no" / "trace.json")


def test_a_training_that_fails_leaves_nothing_on(tmp_path):
    class Fails(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise ValueError("by intent")

    model = linear()
    model.compile("sgd", "mse")
    timeline = keras.callbacks.Timeline(tmp_path / "trace.json", steps=1)
    with pytest.raises(ValueError, match="by intent"):
        model.fit(X, Y, 5, verbose=0, callbacks=[timeline, Fails()])
    assert activity.observer is None
    model.fit(X, Y, 5, verbose=0, callbacks=[timeline])
    events, _ = spans(tmp_path / "trace.json")
    (plan,) = model.train_function.plans
    assert sum(e["cat"] == "operator" for e in events) == len(plan.calls)
    assert not any("_timed" in repr(call) for _, call in plan.calls)
