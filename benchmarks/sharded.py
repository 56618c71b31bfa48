"""``python -m benchmarks sharded``: the memory of a rank where the optimizer's state is divided, or one copy serves a
host, beside a prediction.

For n bytes of weights, s times as many of state (2 for Adam), P ranks and messages of b bytes (`config.bucket_bytes`,
or the largest weight), the prediction is

    whole      n + n + s·n
    one copy   n/P + n + s·n/P
    stage 1    n + n + s·n/P
    stage 2    n + n/P + s·n/P + 3b

weights, gradients, state; in stage 2 a message's gradients, and two messages on their way, take the place of all
gradients. With one rank every gradient is there, whatever the stage. What is measured is the proportional set size
(/proc/self/smaps_rollup: memory that ranks share counts in parts) after some steps, less that of before, when another
small network had been trained.
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks import machine, ranks, report

STAGES = {"whole": 0, "one copy": 0, "stage 1": 1, "stage 2": 2}


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    print(ranks.describe())
    print(f"\nAdam, {options.depth} layers {options.width} wide, {options.rows} rows for each rank; MB on a rank\n")
    rows, results = [], []
    for count in options.ranks:
        for name, stage in STAGES.items():
            job = {
                "activity": "sharded", "stage": stage, "single_copy": name == "one copy", "width": options.width,
                "depth": options.depth, "rows": options.rows, "steps": options.steps,
            }  # fmt: skip
            answers = ranks.run(ranks.OURS, count, job)
            found = {key: statistics.mean(answer[key] for answer in answers) for key in answers[0]}
            largest = 4 * options.width**2
            predicted = prediction(found["weights"], 2, count, name, max(largest, answers[0]["bucket"]))
            results.append({"ranks": count, "state": name, "predicted": predicted, "answers": answers})
            figures = (found["weights"], found["state"], found["arena"], predicted, found["measured"])
            error = f"{found['measured'] / predicted - 1:+.0%}"
            rows.append(
                [str(count), name, *(f"{n / 1e6:.0f}" for n in figures), error, f"{found['seconds'] * 1e3:.0f}"]
            )
            print(" | ".join(rows[-1]), flush=True)
    header = ["ranks", "state", "weights", "state here", "arena", "predicted", "measured", "error", "ms a step"]
    print("\n" + report.table(header, rows))
    print(f"\nload average at the end: {machine.load()}")
    if options.json:
        report.write_json(options.json, {"machine": machine.describe(), "results": results})


def prediction(weights: float, state: float, count: int, way: str, message: float) -> float:
    """Bytes on each of so many ranks; `state` is how many times the weights' bytes the optimizer keeps."""
    if way == "whole" or count == 1:
        return weights * (2 + state)
    if way == "one copy":
        return weights * (1 + (1 + state) / count)
    if way == "stage 1":
        return weights * (2 + state / count)
    return weights * (1 + (1 + state) / count) + message * 3
