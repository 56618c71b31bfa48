"""The campaign of faults: ``python -m tests.faults --runs 20``; prints a table, and what went wrong in detail."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time

from tests.faults.campaign import FAULTS, MAINLY, Campaign, pythons, table


def main() -> int:
    """Run it; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--runs",
        type=int,
        default=20,
        metavar="N",
        help="of kill -9 of a training that goes on, half of them in a save, and of each other fault a twentieth as "
        "many (20); with --fault, of each that is named",
    )
    parser.add_argument("--ranks", type=int, default=3, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the first run; the next has S + 1")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only this one (repeat it)")
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no run after this time")
    options = parser.parse_args()
    found = pythons()
    if not found:
        print("no environment with an MPI library; run `make setup`", file=sys.stderr)
        return 2
    campaigns = [Campaign(python, options.ranks) for python in found]
    end = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    schedule, runs = _schedule(options.runs, options.fault), []
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):  # what has been run until then is shown
        for i, fault in schedule:
            if time.monotonic() > end:
                break
            runs.append(campaigns[i % len(campaigns)].run(fault, options.seed + i))
            if runs[-1].problem:
                print(f"{fault}, seed {options.seed + i}: {runs[-1].problem}", file=sys.stderr, flush=True)
            if len(runs) % 10 == 0:
                print(f"{len(runs)} of {len(schedule)} runs", file=sys.stderr, flush=True)
    print(table(runs))
    return int(any(run.problem for run in runs))


def _schedule(runs: int, named: list[str] | None) -> list[tuple[int, str]]:
    """The faults, each with a number of its own for every turn of it, in an order that mixes them."""
    share = dict.fromkeys(named, 1.0) if named else dict.fromkeys(FAULTS, 0.05) | dict.fromkeys(MAINLY, 0.5)
    turns = [(turn, max(1, round(runs * part)), fault) for fault, part in share.items() for turn in range(runs)]
    turns = [(turn, count, fault) for turn, count, fault in turns if turn < count]
    return [(turn, fault) for turn, count, fault in sorted(turns, key=lambda entry: (entry[0] + 0.5) / entry[1])]


if __name__ == "__main__":
    sys.exit(main())
