"""The command ``disttensor``, also ``python -m disttensor``.

A subcommand is a module of `disttensor.commands`, loaded only when it is asked for, and one line in `COMMANDS`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from disttensor.errors import DistTensorError
from disttensor.version import __version__

COMMANDS = {
    "checkpoint": "list, verify, show and compare checkpoints",
    "info": "show versions, processor, threads, MPI library and caches",
    "plan": "predict how fast training will be on more ranks and hosts",
    "doctor": "check what a run needs, before it starts, on all hosts",
    "submit": "write a batch script for Slurm and submit it",
}
"""Subcommands and what each does, in one line. Command ``x`` is module ``disttensor.commands.x``, with functions
``configure(parser)``, which adds arguments, and ``run(options)``, which returns the exit code."""

_DESCRIPTION = """\
Look at what disttensor finds on this machine, and at what it wrote.

To train on several processes there is a command of its own: disttensor-run."""

_EPILOG = """\
`disttensor COMMAND --help` tells more, with examples.

The exit code is 0 if all is well, 1 if something was looked at and found wanting,
2 if it could not be looked at (an argument is wrong, a file is missing)."""

_UNUSABLE = 2
_INTERRUPTED = 130  # what shells use for an end by SIGINT
_PIPE_CLOSED = 141  # the same for SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Parameters
    ----------
    arguments : sequence of str, default ``sys.argv[1:]``

    Returns
    -------
    int
        The exit code: 0 all is well, 1 found wanting, 2 could not be done, 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser(arguments).parse_args(arguments)
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # as in `disttensor … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except (DistTensorError, OSError) as error:
        print(f"disttensor {options.command}: {error}", file=sys.stderr)
        return _UNUSABLE
    except KeyboardInterrupt:
        return _INTERRUPTED


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, with the arguments of that subcommand only which these arguments name."""
    parser = argparse.ArgumentParser(
        prog="disttensor",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"disttensor {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    named = next((a for a in arguments if not a.startswith("-")), None)
    for name, line in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=line,
            description=f"{line[0].upper()}{line[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == named:
            module = importlib.import_module(f"disttensor.commands.{name}")
            module.configure(command)
            command.set_defaults(run=module.run)
    return parser
