"""The campaign of faults: ``python -m tests.faults --runs 20``; prints a table, and what went wrong in detail."""

from __future__ import annotations

import argparse
import concurrent.futures
import signal
import sys
import time

from tests.faults.campaign import FAULTS, MAINLY, Campaign, Run, pythons, table


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
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings beside each other (1)")
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no run after this time")
    options = parser.parse_args()
    found = pythons()
    if not found:
        print("no environment with an MPI library; run `make setup`", file=sys.stderr)
        return 2
    campaigns = [Campaign(python, options.ranks) for python in found]
    end = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    schedule, runs = _schedule(options.runs, options.fault), list[Run]()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:

        def attempt(turn: int, fault: str) -> Run | None:
            return campaigns[turn % len(campaigns)].run(fault, options.seed + turn) if time.monotonic() < end else None

        futures = [pool.submit(attempt, turn, fault) for turn, fault in schedule]
        try:
            for run in filter(None, (future.result() for future in concurrent.futures.as_completed(futures))):
                runs.append(run)
                if run.problem:
                    print(f"{run.fault}, seed {run.seed}: {run.problem}", file=sys.stderr, flush=True)
                if len(runs) % 10 == 0:
                    print(f"{len(runs)} of {len(schedule)} runs", file=sys.stderr, flush=True)
        except KeyboardInterrupt:  # what has been run until then is shown
            for future in futures:
                future.cancel()
    print(table(sorted(runs, key=lambda run: list(FAULTS).index(run.fault))))
    return int(any(run.problem for run in runs))


def _schedule(runs: int, named: list[str] | None) -> list[tuple[int, str]]:
    """The faults, each with a number of its own for every turn of it, in an order that mixes them."""
    share = dict.fromkeys(named, 1.0) if named else dict.fromkeys(FAULTS, 0.05) | dict.fromkeys(MAINLY, 0.5)
    turns = [(turn, max(1, round(runs * part)), fault) for fault, part in share.items() for turn in range(runs)]
    turns = [(turn, count, fault) for turn, count, fault in turns if turn < count]
    return [(turn, fault) for turn, count, fault in sorted(turns, key=lambda entry: (entry[0] + 0.5) / entry[1])]


if __name__ == "__main__":
    sys.exit(main())
