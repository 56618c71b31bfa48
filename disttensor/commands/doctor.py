"""``disttensor doctor``: look at what a run needs, before it starts; each finding says what to do."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from launch.doctor import Finding, examine
from launch.errors import LaunchError

_EXAMPLES = """\
examples:
  disttensor doctor                            this machine
  disttensor doctor -n 8 --threads 4           would 8 processes of 4 threads fit?
  disttensor doctor --hosts a:8,b:8 --folder /shared/run
  disttensor doctor --json                     for programs

Inside a Slurm job it looks at the job's nodes. The exit code is 1 if there is an error."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    parser.add_argument("-n", type=int, metavar="N", help="number of processes of the run (in a Slurm job: its tasks)")
    parser.add_argument("--threads", type=int, metavar="T", help="threads of each process")
    parser.add_argument("--hosts", metavar="A:4,B:4", help="hosts, and how many processes on each")
    parser.add_argument("--hostfile", metavar="FILE", help="the same from a file")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="where the run will write (default: the folder at hand)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Print the findings."""
    try:
        findings = examine(
            sys.executable, os.environ, options.n, options.threads, options.hosts, options.hostfile, options.folder
        )
    except LaunchError as error:
        print(f"disttensor doctor: {error}", file=sys.stderr)
        return 2
    bad = any(finding.level == "error" for finding in findings)
    if options.json:
        print(json.dumps({"ok": not bad, "findings": [finding._asdict() for finding in findings]}, indent=2))
    else:
        print("\n".join(_text(finding) for finding in findings))
    return int(bad)


def _text(finding: Finding) -> str:
    mark = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}[finding.level]
    advice = f"\n          -> {finding.advice}" if finding.advice else ""
    return f"{mark} {finding.check}: {finding.found}{advice}"
