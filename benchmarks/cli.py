"""The command line: ``python -m benchmarks COMMAND``."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from benchmarks.catalogue import WORKLOADS
from benchmarks.contestants import PEERS, PEERS_ENVIRONMENT
from benchmarks.processes import WorkerError

_COMMANDS = {
    "steps": "time of a training step, beside each peer's",
    "start": "time to the first step, memory, installed size",
    "replay": "what fit adds to the bare replay of the plan",
    "profile": "time of each kernel in one replay of the plan",
    "convolution": "speed of the convolution kernels, as a share of a matrix product's",
    "checkpoint": "what saving costs a training, and its speed beside dd, safetensors and PyTorch",
    "plan": "what `disttensor plan` predicts, beside what is measured on emulated hosts",
    "gemm": "products of matrices, beside numpy's BLAS",
    "allreduce": "sums over ranks of one host, beside the MPI libraries' and gloo's",
    "overlap": "how much of the communication between two emulated hosts hides behind computing",
    "scaling": "throughput of ranks that train together, as a share of what they do alone",
    "determinism": "training whose bits do not depend on the number of ranks, beside the fast one",
    "sharded": "memory of a rank where the optimizer's state is divided, or one copy serves a host",
    "install": "install the peers into .venv-peers",
}
_ROUNDS = {"steps": 7, "start": 3, "replay": 3, "profile": 3, "scaling": 7, "determinism": 2}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, default ``sys.argv[1:]``

    Returns
    -------
    int
        0, or 1 if a measuring process failed in a way that leaves nothing to report.
    """
    options = parser().parse_args(arguments)
    try:
        importlib.import_module(f"benchmarks.{options.command}").run(options)
    except WorkerError as error:
        print(f"python -m benchmarks {options.command}: {error}")
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """What may be asked for."""
    main_parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of disttensor.")
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {name: commands.add_parser(name, help=text, description=text) for name, text in _COMMANDS.items()}
    installed = list(PEERS) if PEERS_ENVIRONMENT.exists() else []
    everything, small = list(WORKLOADS), ["W1"]
    for name, rounds in _ROUNDS.items():
        command = made[name]
        default = small if name == "start" else everything
        command.add_argument("--workload", nargs="+", choices=everything, default=default, help="default: %(default)s")
        command.add_argument("--rounds", type=_positive, default=rounds, help="turns of each process (%(default)s)")
        command.add_argument("--steps", type=_positive, help="steps in a round (default: about a second's)")
        command.add_argument("--json", type=Path, metavar="FILE", help="also write all results here")
        if name in ("steps", "start"):
            command.add_argument(
                "--peer", nargs="*", choices=PEERS, default=installed,
                help="whom to compare with, nobody if empty (default: all, if installed)",
            )  # fmt: skip
        if name not in ("start", "scaling", "determinism"):
            command.add_argument(
                "--threads", nargs="+", type=_positive, help="numbers of threads (default: all cores, and mostly 1)"
            )
    made["replay"].epilog = (
        "By turns, on the same batches: an epoch of fit with a callback that sees every batch and reads its loss, "
        "timed from batch to batch; an epoch with none, timed from look to look (see Pace); and the plan alone, run on "
        "each batch, with its rows written and its loss read."
    )
    made["profile"].add_argument("--calls", type=_positive, default=15, help="how many single calls to list")
    made["convolution"].add_argument(
        "--threads", nargs="+", type=_positive, help="numbers of threads (default: 1, and all cores)"
    )
    made["gemm"].add_argument("--rounds", type=_positive, default=15, help="how often each is measured (%(default)s)")
    made["gemm"].add_argument("--threads", nargs="+", type=_positive, default=[1, 2], help="default: 1 2")
    made["gemm"].add_argument("--json", type=Path, metavar="FILE", help="also write all results here")
    saving = made["checkpoint"]
    saving.add_argument("--parameters", type=_positive, default=50_000_000, help="of the model (%(default)s)")
    saving.add_argument(
        "--every", type=float, default=30.0, metavar="S", help="seconds from save to save (%(default)s)"
    )
    saving.add_argument("--window", type=float, metavar="S", help="seconds of a measurement (default: as --every)")
    saving.add_argument("--rounds", type=_positive, default=3, help="how often each is measured (%(default)s)")
    saving.add_argument("--part", choices=("both", "cost", "speed"), default="both", help="(%(default)s)")
    saving.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure (the current one)")
    saving.add_argument("--json", type=Path, metavar="FILE", help="also write all results here")
    plan = made["plan"]
    plan.add_argument("--rates", nargs="+", default=["100mbit", "300mbit", "1gbit"], help="of links (%(default)s)")
    plan.add_argument("--ranks", nargs="+", type=_positive, default=[1, 2, 3, 4], help="default: 1 2 3 4")
    plan.add_argument("--rows", type=_positive, default=128, help="for each rank (%(default)s)")
    plan.add_argument("--width", type=_positive, default=512, help="of three layers (%(default)s)")
    plan.add_argument("--steps", type=_positive, default=8, help="in a round (%(default)s)")
    plan.add_argument("--rounds", type=_positive, default=3, help="in turns, alone and together (%(default)s)")
    plan.add_argument("--overlap", type=float, default=0.0, help="as in disttensor plan (%(default)s)")
    plan.add_argument("--json", type=Path, metavar="FILE", help="also write all results here")
    made["allreduce"].add_argument("--rounds", type=_positive, default=25, help="best of so many (%(default)s)")
    made["allreduce"].add_argument("--json", type=Path, metavar="FILE", help="also write all results here")
    made["allreduce"].add_argument("--ranks", nargs="+", type=_positive, default=[2, 4], help="default: 2 4")
    overlap = made["overlap"]
    libraries = ["disttensor, Open MPI", "disttensor, MPICH"]
    overlap.add_argument("--mpi", nargs="+", choices=libraries, default=libraries, help="default: both")
    overlap.add_argument("--rate", default="1gbit", help="of the cable (%(default)s)")
    overlap.add_argument("--rows", type=_positive, default=512, help="for each rank (%(default)s)")
    overlap.add_argument("--width", type=_positive, default=1024, help="of three layers (%(default)s)")
    overlap.add_argument("--steps", type=_positive, default=8, help="in a round (%(default)s)")
    overlap.add_argument("--rounds", type=_positive, default=5, help="in turns (%(default)s)")
    overlap.add_argument(
        "--bucket-bytes", type=_positive, default=2 << 20, help="where there are several (%(default)s)"
    )
    overlap.add_argument("--json", type=Path, metavar="FILE", help="also write all results here")
    scaling = made["scaling"]
    scaling.add_argument("--ranks", nargs=1, type=_positive, default=[2], help="how many (default: 2)")
    scaling.add_argument(
        "--floor", action="store_true", help="also ranks that train apart but wait for each other after every step"
    )
    scaling.add_argument(
        "--rank-statistics", action="store_true",
        help="each rank normalizes with the statistics of its own rows, as PyTorch's does, not with those of all",
    )  # fmt: skip
    determinism = made["determinism"]
    determinism.add_argument("--ranks", nargs="+", type=_positive, default=[1, 2], help="default: 1 2")
    determinism.add_argument("--shards", type=_positive, default=8, help="how many (%(default)s)")
    sharded = made["sharded"]
    sharded.add_argument("--ranks", nargs="+", type=_positive, default=[1, 2, 4], help="default: 1 2 4")
    sharded.add_argument("--width", type=_positive, default=1024, help="of the layers (%(default)s)")
    sharded.add_argument("--depth", type=_positive, default=10, help="how many layers (%(default)s)")
    sharded.add_argument("--rows", type=_positive, default=32, help="for each rank (%(default)s)")
    sharded.add_argument("--steps", type=_positive, default=6, help="that are timed (%(default)s)")
    sharded.add_argument("--json", type=Path, metavar="FILE", help="also write all results here")
    made["install"].add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="default: all")
    return main_parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"needs at least 1, got {value}")
    return value
