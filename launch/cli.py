"""The command ``disttensor-run``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from launch.cores import usable_cores
from launch.errors import LaunchError
from launch.plan import BINDINGS, MPIS, Request, make_plan
from launch.supervisor import Policy, supervise

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
  disttensor-run -n 4 --max-restarts 3 --log-dir logs train.py
  disttensor-run -n 4 --dry-run train.py         only show what would be run

In a Slurm job (sbatch, salloc) leave -n out: there is one process for each task
of the job. See slurm/train.sbatch for a script to copy.

On several hosts the program, its data and this Python environment must be found
under the same path everywhere, and ssh must work without a password.

When one process fails, all others are ended, and the one at fault is named with its
last lines. With --max-restarts the same command is run again, on the hosts that still
answer; a program that calls fit(..., resume="auto") goes on from its last checkpoint.
Ctrl-C tells the processes to finish (they save a checkpoint first, if they keep
any); a second one ends them at once. SIGTERM and SIGUSR1 are passed on.

The exit code is that of the process that failed first: 0 if all end well, 128 + n if
signal n killed it, 75 if it was asked to stop early and can be resumed, 124 after
--timeout."""


def main(arguments: list[str] | None = None) -> int:
    """Run the program on all its processes, and start it again as often as was allowed.

    Parameters
    ----------
    arguments : list of str, default ``sys.argv[1:]``

    Returns
    -------
    int
        The exit code of the program; 0 after ``--dry-run``, 2 if the program cannot be started, 124 after
        ``--timeout``, 128 + n if signal n ended a rank.
    """
    options = _parser().parse_args(arguments)
    try:
        request = _request(options)
        if options.dry_run:
            print(make_plan(request, os.environ, usable_cores(), os.geteuid() == 0))
            return 0
        policy = Policy(options.max_restarts, options.min_ranks, options.timeout, options.log_dir, options.requeue)
        return supervise(request, policy, os.environ, usable_cores(), os.geteuid() == 0)
    except LaunchError as error:
        print(f"disttensor-run: {error}", file=sys.stderr)
        return 2


def _request(options: argparse.Namespace) -> Request:
    if not options.module and not Path(options.program).exists():
        raise LaunchError(f"there is no file {options.program} in {Path.cwd()}. For a module, put -m before it.")
    return Request(
        program=(sys.executable, *(["-m"] if options.module else []), options.program, *options.arguments),
        n=options.n,
        hosts=options.hosts,
        hostfile=options.hostfile,
        threads=options.threads,
        mpi=options.mpi,
        bind=options.bind,
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
        "--mpi",
        choices=MPIS,
        default="auto",
        help="what starts the processes (default: srun in a Slurm job, else the mpirun beside this Python)",
    )
    parser.add_argument(
        "--bind",
        choices=BINDINGS,
        default="none",
        help="cores: each process keeps to as many cores of its own as it has threads (default: none)",
    )
    parser.add_argument(
        "--max-restarts", type=int, default=0, metavar="R", help="start again after a failure, R times at most (0)"
    )
    parser.add_argument(
        "--min-ranks",
        type=int,
        default=1,
        metavar="M",
        help="when hosts are lost, go on with fewer processes, but not fewer than M (1)",
    )
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="tell the processes to finish after S seconds, then end them"
    )
    parser.add_argument(
        "--log-dir", type=Path, metavar="DIR", help="a log file for each process; lines on the terminal get its number"
    )
    parser.add_argument(
        "--requeue",
        action="store_true",
        help="a Slurm job that saved a checkpoint before its time limit goes back into the queue",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the command as a line for the shell, and end")
    parser.add_argument("program", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
