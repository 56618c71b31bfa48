"""The command ``disttensor-run``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from launch.errors import LaunchError
from launch.plan import LAUNCHERS, Request, make_plan, usable_cores

_DESCRIPTION = """\
Run a Python program on several processes that train one model together.

The program is an ordinary one: `import disttensor` finds the other processes. Its
batch size is that of all processes together, so the result is the same for any -n."""

_EXAMPLES = """\
examples:
  disttensor-run -n 4 train.py --epochs 3        4 processes on this machine
  disttensor-run -n 4 -m mypackage.train         a module instead of a file
  disttensor-run --hosts a:8,b:8 train.py        8 processes on each of two hosts
  disttensor-run -n 4 --threads 2 train.py       2 threads in each process
  disttensor-run -n 4 --dry-run train.py         only show what would be run

In a Slurm job (sbatch, salloc) leave -n out: there is one process for each task
of the job. See slurm/train.sbatch for a script to copy.

On several hosts the program, its data and this Python environment must be found
under the same path everywhere, and ssh must work without a password.

The exit code is 0 if all processes end well, otherwise what mpirun or srun makes
of the code of the one that failed."""


def main(arguments: list[str] | None = None) -> int:
    """Start the program; does not return if all is well, because this process becomes mpirun.

    Parameters
    ----------
    arguments : list of str, default ``sys.argv[1:]``

    Returns
    -------
    int
        0 after ``--dry-run``, 2 if the program cannot be started.
    """
    options = _parser().parse_args(arguments)
    try:
        plan = make_plan(_request(options), os.environ, usable_cores(), os.geteuid() == 0)
        if options.dry_run:
            print(plan)
            return 0
        return _become(plan.command, {**os.environ, **plan.variables})
    except LaunchError as error:
        print(f"disttensor-run: {error}", file=sys.stderr)
        return 2


def _become(command: tuple[str, ...], environ: dict[str, str]) -> int:
    """Replace this process, so that signals reach the new program and its exit code is ours."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(command[0], command, environ)
    except OSError as error:
        raise LaunchError(f"cannot start {command[0]}: {error.strerror}.") from None


def _request(options: argparse.Namespace) -> Request:
    if not options.module and not Path(options.program).exists():
        raise LaunchError(f"there is no file {options.program} in {Path.cwd()}. For a module, put -m before it.")
    return Request(
        program=(sys.executable, *(["-m"] if options.module else []), options.program, *options.arguments),
        n=options.n,
        hosts=options.hosts,
        hostfile=options.hostfile,
        threads=options.threads,
        launcher=options.launcher,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="disttensor-run",
        usage="disttensor-run [-n N] [options] program.py [arguments of the program ...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-n", type=int, metavar="N", help="number of processes (in a Slurm job: its tasks)")
    parser.add_argument("-m", "--module", action="store_true", help="the program is a module, as in python -m")
    parser.add_argument("--hosts", metavar="A:4,B:4", help="hosts, and how many processes on each")
    parser.add_argument("--hostfile", metavar="FILE", help="the same from a file; one `A:4` or `A slots=4` a line")
    parser.add_argument(
        "--threads", type=int, metavar="T", help="threads in each process (default: the cores, shared evenly)"
    )
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="auto",
        help="what starts the processes (default: srun in a Slurm job, else the mpirun beside this Python)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the command as a line for the shell, and end")
    parser.add_argument("program", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
