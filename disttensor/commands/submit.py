"""``disttensor submit``: write a batch script for Slurm and submit it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launch.batch import Job, file_name, script, submit
from launch.errors import LaunchError

_EXAMPLES = """\
examples:
  disttensor submit --nodes 4 --time 2:00:00 train.py --epochs 20
  disttensor submit --ntasks 16 --threads 2 --requeue 120 train.py
  disttensor submit --nodes 4 --dry-run train.py
  disttensor submit train.py --nodes 4 --time 2:00:00 -- --epochs 20

Options may stand behind the program too, if neither --nodes nor --ntasks stands before
it; what is not known here, and all behind a `--`, is the program's.

The script is written to the folder at hand, named after the program, and is yours to
change. Options of sbatch that have none here: --sbatch=--constraint=avx512 (repeat it)."""


_USAGE = "disttensor submit (--nodes N | --ntasks N) [options] program.py [arguments of the program ...]"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog, parser.usage = _EXAMPLES, _USAGE
    _add_options(parser)
    parser.add_argument("program", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, metavar="N", help="number of nodes")
    parser.add_argument("--ntasks", type=int, metavar="N", help="number of processes on all nodes together")
    parser.add_argument("--ntasks-per-node", type=int, metavar="N", help="number of processes on each node")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="T", help="cores, and so threads, of each process (1)"
    )
    parser.add_argument("--time", metavar="H:MM:SS", help="time after which the job is ended (the cluster's default)")
    parser.add_argument("--partition", metavar="NAME", help="the queue")
    parser.add_argument("--account", metavar="NAME", help="who pays")
    parser.add_argument("--mem-per-cpu", metavar="2G", help="memory of each core")
    parser.add_argument("--name", metavar="NAME", help="name of job and script (the program's)")
    parser.add_argument("--max-restarts", type=int, default=0, metavar="R", help="as in disttensor-run")
    parser.add_argument(
        "--requeue",
        type=int,
        metavar="SECONDS",
        help="so long before its time is over the job saves a checkpoint, goes back into the queue, and later goes "
        'on; the program must call fit(..., resume="auto")',
    )
    parser.add_argument("--sbatch", action="append", default=[], metavar="--OPTION", help="any other option of sbatch")
    parser.add_argument("--module", action="store_true", help="the program is a module, as in python -m")
    parser.add_argument("--dry-run", action="store_true", help="only show the script")


def _look_behind_program(options: argparse.Namespace) -> None:
    """Take our options out of the program's arguments."""
    parser = argparse.ArgumentParser(usage=_USAGE, add_help=False, allow_abbrev=False)
    _add_options(parser)
    end = options.arguments.index("--") if "--" in options.arguments else len(options.arguments)
    behind = options.arguments[end + 1 :]
    _, others = parser.parse_known_args(options.arguments[:end], options)
    options.arguments = [*others, *behind]


def run(options: argparse.Namespace) -> int:
    """Show the script, and submit it unless told otherwise."""
    if options.nodes is None and options.ntasks is None:
        _look_behind_program(options)
    values = {name: getattr(options, name) for name in Job._fields if hasattr(options, name)}
    job = Job(**values | {"arguments": tuple(options.arguments), "options": tuple(options.sbatch)})
    environment = Path(sys.executable).parent
    try:
        print(script(job, environment), end="", flush=True)
        if not options.dry_run:
            print(f"\n# {file_name(job)}: {submit(job, environment)}")
    except LaunchError as error:
        print(f"disttensor submit: {error}", file=sys.stderr)
        return 2
    return 0
