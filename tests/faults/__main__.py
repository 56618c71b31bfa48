"""The campaign of faults: ``python -m tests.faults --runs 20``; prints a table, and what went wrong in detail."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time

from tests.faults.campaign import FAULTS, Campaign, pythons, table


def main() -> int:
    """Run it; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=2, metavar="N", help="of each fault (2)")
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
    faults, runs = options.fault or list(FAULTS), []
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):  # what has been run until then is shown
        for i in range(options.runs):
            for fault in faults:
                if time.monotonic() > end:
                    break
                runs.append(campaigns[i % len(campaigns)].run(fault, options.seed + i))
                if runs[-1].problem:
                    print(f"{fault}, seed {options.seed + i}: {runs[-1].problem}", file=sys.stderr, flush=True)
            print(f"{len(runs)} of {options.runs * len(faults)} runs", file=sys.stderr, flush=True)
    print(table(runs))
    return int(any(run.problem for run in runs))


if __name__ == "__main__":
    sys.exit(main())
