"""How much memory a plan takes, and what for: `Plan.memory`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from disttensor.context import Spec


class Buffer(NamedTuple):
    """A stretch of the arena.

    Attributes
    ----------
    name : str
        The result that it holds first, as in ``print(plan.graph)``.
    operator : str
        What computes that.
    spec : Spec
    nbytes, offset : int
        Where in the arena.
    first, last : int
        The numbers of the nodes that write it first and read it last; the end of the run counts as one more.
    """

    name: str
    operator: str
    spec: Spec
    nbytes: int
    offset: int
    first: int
    last: int


class Memory(NamedTuple):
    """The memory of a plan, in bytes; printed as a table.

    Attributes
    ----------
    arena : int
        All intermediates, in one block, where later ones take the place of earlier ones.
    alive : int
        The most that is needed at one time: no placement can do with less.
    unshared : int
        What the arena would be if each result had memory of its own.
    inputs, constants, variables : int
        Outside the arena. Variables are those that the graph reads or updates.
    buffers : tuple of Buffer
        Largest first.
    """

    arena: int
    alive: int
    unshared: int
    inputs: int
    constants: int
    variables: int
    buffers: tuple[Buffer, ...]

    def __str__(self) -> str:
        share = f" ({self.arena / self.unshared:.0%})" if self.unshared else ""
        lines = [
            f"arena {_size(self.arena)}, of {_size(self.unshared)} without sharing{share}; "
            f"{_size(self.alive)} alive at once",
            f"inputs {_size(self.inputs)}, constants {_size(self.constants)}, variables {_size(self.variables)}",
        ]
        for buffer in self.buffers[:10]:
            what = f"{buffer.operator} {buffer.spec.dtype}{list(buffer.spec.shape)}"
            lines.append(f"{_size(buffer.nbytes):>10}  {buffer.name} {what}, needed {buffer.first} … {buffer.last}")
        if len(self.buffers) > 10:
            lines.append(f"{'':>10}  and {len(self.buffers) - 10} smaller ones")
        return "\n".join(lines)


def most_alive(buffers: Sequence[Buffer]) -> int:
    """The most bytes that are needed at one time."""
    changes = sorted(
        change for b in buffers for change in ((b.first, 1, b.nbytes), (b.last, 2, -b.nbytes))
    )  # fmt: skip
    most = now = 0
    for _, _, change in changes:
        now += change
        most = max(most, now)
    return most


def _size(nbytes: int) -> str:
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"
