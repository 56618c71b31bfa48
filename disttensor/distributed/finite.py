"""Gradients that are not finite are found before they change a weight, and it is said on which rank they arose.

When gradients have been added up over ranks, a NaN of one rank is everywhere. So each rank counts before: how many
values are not finite in which gradient. The counts travel with the gradients (`sync_sum`, in the same message) to an
operator that raises on every rank if any count is not 0. Gradients, learning rate and the number of steps pass behind
it (`fence`); so no rank updates weights, slots or that number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from disttensor.context import Spec
from disttensor.distributed import activity, world
from disttensor.distributed.collectives import sync_sum
from disttensor.errors import NonFiniteError
from disttensor.ops.registry import Example, apply, operator
from disttensor.tensor import Tensor, Variable

_NAMED = 5


@operator(examples=[Example((2, 3), (4,), ranks=2), Example((0,), ranks=1)])
def count_not_finite(out: np.ndarray, *values: np.ndarray, ranks: int) -> None:
    """For each value 1 if an element of it is NaN or infinite; then for each rank 1 if that is this one and so."""
    for i, value in enumerate(values):
        # The sum tells, unless it overflows; then the elements do.
        out[i] = 0 if np.isfinite(value.sum()) else not np.isfinite(value).all()
    out[len(values) :] = 0
    out[len(values) + world.data_group().rank] = out[: len(values)].any()


@count_not_finite.infer
def _(*values: Spec, ranks: int) -> Spec:
    return Spec((len(values) + ranks,), "float32")


@operator(examples=[Example(np.zeros(3, np.float32), names=("a", "b"))])
def require_finite(out: np.ndarray, counts: np.ndarray, *, names: tuple[str, ...]) -> None:
    """The counts, if none is 1 or more; NonFiniteError otherwise."""
    np.copyto(out, counts)
    found = counts > 0.5
    if found.any():
        guilty = [name for name, is_found in zip(names, found, strict=False) if is_found]
        ranks = np.flatnonzero(found[len(names) :]).tolist()
        raise NonFiniteError(_message(guilty, ranks, len(names)))


@require_finite.infer
def _(counts: Spec, *, names: tuple[str, ...]) -> Spec:
    return counts


@require_finite.gradient
def _(ctx: Any, g: Tensor) -> Tensor:
    return g


def _message(guilty: Sequence[str], ranks: Sequence[int], total: int) -> str:
    if len(guilty) == total:
        which = "of all variables"
    else:
        more = f" and {len(guilty) - _NAMED} more" if len(guilty) > _NAMED else ""
        which = f"of {', '.join(guilty[:_NAMED])}{more}"
    where = ""
    if world.size() > 1:
        where = f" on {'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}"
    return (
        f"step {activity.steps.value}: the gradient {which} is not finite{where}; no weight was changed. Lower the "
        "learning rate, clip gradients, or look for bad data."
    )


def checked(gradients: Sequence[Tensor], variables: Sequence[Variable]) -> Tensor:
    """What every update must come behind; raises on all ranks if a gradient of any rank is not finite.

    Parameters
    ----------
    gradients : sequence of Tensor
        Of this rank's rows, before they are combined with those of others.
    variables : sequence of Variable
    """
    counts = apply(count_not_finite, list(gradients), {"ranks": world.data_group().size})
    return apply(require_finite, [sync_sum(counts)], {"names": tuple(v.path for v in variables)})


def with_weights(error: NonFiniteError, variables: Sequence[Variable]) -> NonFiniteError:
    """The same error, which also names weights that are not finite, on all ranks that have such; collective."""
    own = [v.path for v in variables if not np.isfinite(v.memory).all()][:_NAMED]
    found = world.communicator().all_gather_object(own)
    lines = [f"\nNot finite{f' on rank {rank}' if len(found) > 1 else ''} was already: {', '.join(names)}."
             for rank, names in enumerate(found) if names]  # fmt: skip
    return NonFiniteError("".join([str(error), *lines]))
