"""Settings that hold for the whole process.

`floatx`, `epsilon`, `image_data_format` and `dtype_policy` are Keras's; `threads` is how many threads the kernels may
use, `self_tuning` whether it is measured how many pay, and which all-reduce is faster; `enable_determinism` makes
training independent of the number of processes, to the last bit; `all_reduce_algorithm` is how processes sum long
arrays, `single_copy` whether those of a host share their weights, `consistency_interval` how often they compare them,
`collective_timeout` how long one waits for another.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from disttensor import dtypes
from disttensor.dtype_policies import dtype_policy, set_dtype_policy
from disttensor.errors import ArgumentError
from launch.cores import usable_cores

__all__ = [
    "ALL_REDUCE_ALGORITHMS",
    "all_reduce_algorithm",
    "collective_timeout",
    "consistency_interval",
    "bucket_bytes",
    "disable_determinism",
    "dtype_policy",
    "enable_determinism",
    "epsilon",
    "floatx",
    "image_data_format",
    "self_tuning",
    "set_all_reduce_algorithm",
    "set_collective_timeout",
    "set_consistency_interval",
    "set_bucket_bytes",
    "set_dtype_policy",
    "set_epsilon",
    "set_floatx",
    "set_image_data_format",
    "set_self_tuning",
    "set_single_copy",
    "set_threads",
    "shards_of",
    "single_copy",
    "threads",
    "virtual_shards",
]

_floatx = "float32"
_epsilon = 1e-7
_image_data_format = "channels_last"
_threads: int | None = None
_self_tuning: bool | None = None
_shards: int | None = None
_shards_per_rank: tuple[int, ...] | None = None
_all_reduce_algorithm: str | None = None
_collective_timeout: float | None = None
_consistency_interval: int | None = None
_bucket_bytes: int | None = None
_single_copy: bool | None = None
ALL_REDUCE_ALGORITHMS = ("auto", "mpi", "shared", "hierarchical")


def floatx() -> str:
    """The default floating-point dtype, ``"float32"`` unless `set_floatx` changed it."""
    return _floatx


def set_floatx(value: str) -> None:
    """Set the default floating-point dtype: "bfloat16", "float16", "float32" or "float64"."""
    global _floatx
    name = dtypes.standardize_dtype(value)
    if not dtypes.is_floating(name):
        raise ArgumentError(f"set_floatx() needs a floating-point dtype, got {value!r}.")
    _floatx = name


def epsilon() -> float:
    """The fuzz factor that keeps logarithms and divisions finite, 1e-7 unless changed."""
    return _epsilon


def set_epsilon(value: float) -> None:
    """Set the fuzz factor; must be positive."""
    global _epsilon
    if not value > 0:
        raise ArgumentError(f"set_epsilon() needs a positive number, got {value!r}.")
    _epsilon = float(value)


def image_data_format() -> str:
    """The default layout of images; always ``"channels_last"``: our kernels are written for it."""
    return _image_data_format


def set_image_data_format(data_format: str) -> None:
    """Accept ``"channels_last"``; anything else is an error, because kernels exist for that layout only."""
    if data_format != "channels_last":
        raise ArgumentError(
            f"image_data_format {data_format!r} is not supported; disttensor stores images as channels_last "
            "(batch, height, width, channels). Transpose the data with ops.transpose(x, (0, 2, 3, 1))."
        )


def threads() -> int:
    """How many threads a kernel may use in this process; `self_tuning` may find that fewer are faster.

    The first that is set of: `set_threads`, ``DISTTENSOR_THREADS``, ``OMP_NUM_THREADS``, and the number of cores this
    process may run on, or of whole cores for which its control group (a container, a Slurm job) gets time. The launcher
    sets the variables so that the ranks of one host share its cores.
    """
    global _threads
    if _threads is None:
        _threads = _threads_from_environment()
    return _threads


def set_threads(count: int) -> None:
    """Set how many threads kernels may use from now on; at least 1."""
    global _threads
    if count < 1:
        raise ArgumentError(f"set_threads() needs at least 1, got {count}.")
    _threads = int(count)


def self_tuning() -> bool:
    """Whether this machine is measured to decide how many threads pay, and which all-reduce is faster.

    The first that is set of: `set_self_tuning`, ``DISTTENSOR_TUNING`` (0 for no), and yes. In deterministic mode no.
    """
    global _self_tuning
    if _self_tuning is None:
        _self_tuning = _number_from_environment("DISTTENSOR_TUNING", least=0) != 0
    return _self_tuning and not virtual_shards()


def set_self_tuning(enabled: bool) -> None:
    """Let the machine be measured where that is needed, or take fixed constants from now on.

    What is measured, in some milliseconds before the first work for several threads, is how much they help, and what it
    costs to meet them; before ranks of one host first sum, whether our all-reduce or the MPI library's is faster. It is
    kept in the user's cache. No result depends on threads; of an all-reduce of more than two ranks the last bits may.
    Without, kernels use all `threads`, and ranks of one host sum "shared".
    """
    global _self_tuning
    _self_tuning = bool(enabled)


def enable_determinism(shards: int = 8, per_rank: Sequence[int] | None = None) -> None:
    """Make training give the same bits for any number of processes, from now on.

    Each global batch is cut into so many virtual shards. Each is computed alone, and what they yield (gradients, metric
    states, averages of batch statistics) is added up along one fixed binary tree, whichever process holds which shard.
    ``BatchNormalization`` takes the statistics of a shard, unless it was made with ``synchronized=True``. Only traced
    steps can do that: `fit`, `evaluate`, `predict`, and loops of one's own under ``function``.

    Parameters
    ----------
    shards : int, default 8
        The results depend on this number. It limits how many processes share the work; powers of two that are
        multiples of the number of processes suit best.
    per_rank : sequence of int, optional
        How many of the shards each process holds, for example fewer on a slow host; changes no bit. Default: evenly.

    Raises
    ------
    ArgumentError
        If `shards` is not positive, or the numbers of `per_rank` are negative or do not add up to it.

    Notes
    -----
    The environment variable ``DISTTENSOR_DETERMINISTIC=8`` does the same; 0 is as if it were not set.

    Examples
    --------
    >>> import disttensor as keras
    >>> keras.config.enable_determinism(shards=4)
    >>> keras.config.virtual_shards()
    4
    >>> keras.config.disable_determinism()
    """
    global _shards, _shards_per_rank
    if isinstance(shards, bool) or shards != int(shards) or shards < 1:
        raise ArgumentError(f"enable_determinism() needs a positive number of shards, got {shards!r}.")
    if per_rank is not None and (min(per_rank, default=-1) < 0 or sum(per_rank) != shards):
        raise ArgumentError(f"enable_determinism(): per_rank {list(per_rank)} must add up to the {shards} shards.")
    _shards, _shards_per_rank = int(shards), None if per_rank is None else tuple(per_rank)


def disable_determinism() -> None:
    """Let each process compute its rows of the batch in one go, as is the default."""
    global _shards, _shards_per_rank
    _shards, _shards_per_rank = 0, None


def virtual_shards() -> int:
    """Into how many virtual shards a batch is cut; 0 unless `enable_determinism` was called."""
    global _shards
    if _shards is None:
        _shards = _number_from_environment("DISTTENSOR_DETERMINISTIC", least=0) or 0
    return _shards


def shards_of(rank: int, size: int) -> tuple[int, int]:
    """The first and past-the-last virtual shard that a rank holds.

    Raises
    ------
    ArgumentError
        If `enable_determinism` was told how many shards each of another number of ranks holds.
    """
    shards = virtual_shards()
    if _shards_per_rank is None:
        return rank * shards // size, (rank + 1) * shards // size
    if len(_shards_per_rank) != size:
        raise ArgumentError(
            f"enable_determinism() was told the shards of {len(_shards_per_rank)} ranks, {list(_shards_per_rank)}, but "
            f"there are {size}."
        )
    return sum(_shards_per_rank[:rank]), sum(_shards_per_rank[: rank + 1])


def _number_from_environment(name: str, least: int = 1) -> int | None:
    text = os.environ.get(name, "").split(",")[0].strip()
    if not text:
        return None
    if not text.isdigit() or int(text) < least:
        wanted = "a positive integer" if least else "0, for off, or a positive integer"
        raise ArgumentError(f"environment variable {name}={os.environ[name]!r} must be {wanted}.")
    return int(text)


def all_reduce_algorithm() -> str:
    """How ranks sum arrays.

    The first that is set of: `set_all_reduce_algorithm`, ``DISTTENSOR_ALLREDUCE``, and "auto".
    """
    name = _all_reduce_algorithm or os.environ.get("DISTTENSOR_ALLREDUCE") or "auto"
    if name not in ALL_REDUCE_ALGORITHMS:
        raise ArgumentError(
            f"environment variable DISTTENSOR_ALLREDUCE={name!r} must be one of {', '.join(ALL_REDUCE_ALGORITHMS)}."
        )
    return name


def set_all_reduce_algorithm(name: str) -> None:
    """Set how ranks sum arrays; holds for groups of ranks that have not summed one yet. Rank 0's choice counts.

    Parameters
    ----------
    name : {"auto", "mpi", "shared", "hierarchical"}
        "mpi": the MPI library's all-reduce. "shared": through memory that the ranks share, which must all be on one
        host. "hierarchical": through shared memory within each host, and the MPI library between hosts. "auto": on one
        host "shared", if it has memory for that, but "mpi" for lengths at which a measurement (see
        `set_self_tuning`) finds that clearly faster; on several "mpi", but for what goes on in the background.
    """
    global _all_reduce_algorithm
    if name not in ALL_REDUCE_ALGORITHMS:
        raise ArgumentError(
            f"set_all_reduce_algorithm() needs one of {', '.join(ALL_REDUCE_ALGORITHMS)}; got {name!r}."
        )
    _all_reduce_algorithm = name


def collective_timeout() -> float:
    """After how many seconds in one collective a run of several processes is ended; 0 for never.

    The first that is set of: `set_collective_timeout`, ``DISTTENSOR_TIMEOUT``, and 600.
    """
    global _collective_timeout
    if _collective_timeout is None:
        text = os.environ.get("DISTTENSOR_TIMEOUT", "").strip() or "600"
        try:
            _collective_timeout = _seconds(float(text))
        except ValueError:
            raise ArgumentError(
                f"environment variable DISTTENSOR_TIMEOUT={text!r} must be a number of seconds, or 0 for no limit."
            ) from None
    return _collective_timeout


def set_collective_timeout(seconds: float) -> None:
    """End the run when one collective lasts longer than this, from now on; 0 for no limit.

    A process that waits in vain for another one then says which, with the Python stacks of all, and ends the whole job.
    What one process does alone while others wait (downloading data, saving a model) must be shorter.
    """
    global _collective_timeout
    try:
        _collective_timeout = _seconds(seconds)
    except (TypeError, ValueError):
        raise ArgumentError(
            f"set_collective_timeout() needs a number of seconds, or 0 for no limit; got {seconds!r}."
        ) from None


def _seconds(value: float) -> float:
    if not 0 <= value < float("inf"):
        raise ValueError
    return float(value)


def consistency_interval() -> int | None:
    """After how many steps `fit` compares the ranks' weights; 0 for never.

    The first that is set of `set_consistency_interval` and ``DISTTENSOR_CONSISTENCY_INTERVAL``. None, the default, is
    after 100 steps, but where these are short not before ranks agree to go on anyway, every half second.
    """
    if _consistency_interval is not None:
        return _consistency_interval
    return _whole_from_environment("DISTTENSOR_CONSISTENCY_INTERVAL")


def set_consistency_interval(steps: int | None) -> None:
    """Let `fit` compare a digest of the ranks' weights and optimizer state every so many steps; 0 for never.

    With one process nothing is compared. None is what `consistency_interval` says.
    """
    global _consistency_interval
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
        raise ArgumentError(f"set_consistency_interval() needs a number of steps, or 0 for never; got {steps!r}.")
    _consistency_interval = steps


def _whole_from_environment(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdigit():
        raise ArgumentError(f"environment variable {name}={os.environ[name]!r} must be an integer, 0 or more.")
    return int(text)


def bucket_bytes() -> int:
    """Gradients are summed over ranks in buckets; one takes no further gradient once it is as large as this.

    The first that is set of: `set_bucket_bytes`, ``DISTTENSOR_BUCKET_BYTES``, and 4 MiB.
    """
    return _bucket_bytes or _number_from_environment("DISTTENSOR_BUCKET_BYTES") or 4 << 20


def set_bucket_bytes(count: int) -> None:
    """Set `bucket_bytes` for what is traced from now on; all ranks must set the same."""
    global _bucket_bytes
    if not isinstance(count, int) or count < 1:
        raise ArgumentError(f"set_bucket_bytes() needs a positive int, got {count!r}.")
    _bucket_bytes = count


def single_copy() -> bool | None:
    """Whether the ranks of a host have one copy of weights and optimizer slots together; None: where that pays.

    The first that is set of: `set_single_copy`, ``DISTTENSOR_SINGLE_COPY`` (0 for no, 1 for yes), and None.
    """
    if _single_copy is not None:
        return _single_copy
    number = _number_from_environment("DISTTENSOR_SINGLE_COPY", least=0)
    return None if number is None else number != 0


def set_single_copy(enabled: bool | None) -> None:
    """Let the ranks of a host have one copy of each large variable together, or each its own, from now on.

    With None, the default, they have if the model is large: one that fits into the caches of each core is updated
    faster where nobody else writes.

    It holds for variables that are made afterwards, and for what is not shared yet; it is off if it is on one rank. No
    result depends on it. `disttensor.distributed.single_copy` says how it works.
    """
    global _single_copy
    _single_copy = None if enabled is None else bool(enabled)


def _threads_from_environment() -> int:
    for name in ("DISTTENSOR_THREADS", "OMP_NUM_THREADS"):
        if (count := _number_from_environment(name)) is not None:
            return count
    return usable_cores()
