"""Ranks that should be alike are compared: what they are about to do, and from time to time their weights.

Ranks that train different things do not fail by themselves: they exchange gradients that do not belong together, or
wait for ever. So before the first step they compare a fingerprint of everything that must be equal (`require_same`).
Later a faulty memory, or code that changes one rank's weights, makes ranks drift apart without a word; so every so many
steps they compare a digest of the weights (`ReplicaCheck`), which travels in a message that is sent anyway.

References: xxHash, https://xxhash.com.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from disttensor import config
from disttensor.distributed import world
from disttensor.errors import DistributedError
from disttensor.tensor import Variable

_DIGEST = 8  # bytes
DIGEST_BYTES = 2 * _DIGEST
"""Length of what `ReplicaCheck.message` returns."""
_INTERVAL = 100  # steps
_LONGEST = 400  # characters of a fact; longer ones are replaced by their hash
_NAMED = 8  # differences that a message names
_SHOWN = 120  # characters of a value
_NOTHING = "nothing of this kind"


def require_same(what: str, facts: Mapping[str, Any], content: bytes = bytes(_DIGEST)) -> bool:
    """Raise on every rank if facts differ between ranks; collective. One message of 32 bytes if they do not.

    Parameters
    ----------
    what : str
        What the facts are about, for the message.
    facts : mapping of str to what JSON knows
        In the order in which differences shall be named. Of mappings within, each leaf is a fact.
    content : bytes, optional
        A digest of something that may differ.

    Returns
    -------
    bool
        Whether all ranks have the same `content`.

    Raises
    ------
    DistributedError
        It names the ranks, and which facts differ.
    """
    group = world.communicator()
    if group.size == 1:
        return True
    digest = hashlib.blake2b(json.dumps([what, facts], sort_keys=True).encode(), digest_size=_DIGEST).digest()
    # As long in any case, so that ranks which are at different calls find out.
    maxima = group.all_reduce(np.concatenate([_with_complement(digest), _with_complement(content)]), "max")
    if _are_equal(maxima[:DIGEST_BYTES]):
        return _are_equal(maxima[DIGEST_BYTES:])
    calls = group.all_gather_object(what)
    if len(set(calls)) > 1:
        subject, texts = "what comes next", {"they are at": what}
    else:
        subject, texts = what, {}
        for name, value in facts.items():
            texts |= _leaves(name, value)
    expected = group.broadcast_object(texts)
    differing = [key for key in {**expected, **texts} if expected.get(key) != texts.get(key)]
    found = group.all_gather_object([[key, _short(texts.get(key))] for key in differing[:_NAMED]])
    lines = _differences({key: _short(text) for key, text in expected.items()}, found, group.hosts)
    raise DistributedError(
        f"the ranks do not agree on {subject}, and nothing was changed:\n" + "\n".join(lines) + "\n"
        "Every rank must run the same program with the same arguments, data and seeds; only what it prints or writes "
        "may depend on its rank."
    )


def _leaves(prefix: str, value: Any) -> dict[str, str]:
    """The leaves of nested facts as JSON, by what leads to them."""
    if not isinstance(value, Mapping) or not value:
        return {prefix.rstrip(".: "): _hashed(json.dumps(value, sort_keys=True))}
    if set(value) == {"class_name", "config"}:
        return _leaves(f"{prefix}class", value["class_name"]) | _leaves(prefix, value["config"])
    found: dict[str, str] = {}
    for key, entry in value.items():
        found |= _leaves(f"{prefix}{key}.", entry)
    return found


def _hashed(text: str) -> str:
    """A text that can be sent, or its hash."""
    if len(text) <= _LONGEST:
        return text
    return f"{len(text)} characters, {hashlib.blake2b(text.encode()).hexdigest()[:16]}"


def _differences(expected: Mapping[str, str], found: Sequence[Any], hosts: Sequence[str]) -> list[str]:
    """Lines that say who has what, from the facts of rank 0 and from those in which each rank differs from it."""
    ranks_with: dict[str, dict[str, list[int]]] = {}
    for rank, entries in enumerate(found):
        for key, text in entries:
            ranks_with.setdefault(key, defaultdict(list))[text].append(rank)
    lines = []
    for key in [*(key for key in expected if key in ranks_with), *(key for key in ranks_with if key not in expected)]:
        others = {rank for ranks in ranks_with[key].values() for rank in ranks}
        usual = {expected.get(key, _NOTHING): [rank for rank in range(len(found)) if rank not in others]}
        said = [
            f"{_ranks(ranks, hosts)} {'has' if len(ranks) == 1 else 'have'} {text}"
            for text, ranks in {**usual, **ranks_with[key]}.items()
        ]
        lines.append(f"  {key}: {', '.join(said)}")
    return lines[:_NAMED]


def _short(text: str | None) -> str:
    if text is None:
        return _NOTHING
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _ranks(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Ranks for people, with their host where they are few."""
    if len(ranks) == 1:
        return f"rank {ranks[0]} (host {hosts[ranks[0]]})"
    shown = ", ".join(map(str, ranks[:_NAMED]))
    return f"ranks {shown}" + (f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else "")


def _with_complement(digest: bytes) -> np.ndarray:
    """Bytes and 255 minus each: their maxima over ranks still add up to 255 only if all ranks have the same bytes."""
    found = np.frombuffer(digest, np.uint8)
    return np.concatenate([found, 255 - found])


def _are_equal(maxima: np.ndarray) -> bool:
    half = maxima.size // 2
    return bool((maxima[:half] + maxima[half:] == 255).all())  # modulo 256, but maximum − minimum is less than that


def digest_of(variables: Iterable[Variable]) -> bytes:
    """A digest of the values of variables, as they lie in this rank's memory."""
    import xxhash

    total = xxhash.xxh3_64()
    for variable in variables:
        total.update(_bytes_of(variable))
    return total.digest()


class ReplicaCheck:
    """Finds ranks whose variables differ although they should be equal to the last bit.

    Parameters
    ----------
    variables : sequence of Variable
        The same on every rank.
    interval : int, optional
        Steps between two checks; default `config.consistency_interval`. 0 for none.
    start : int, default 0
        The step from which the first of them is counted.
    """

    def __init__(self, variables: Sequence[Variable], interval: int | None = None, start: int = 0):
        self._variables = list(variables)
        exact = config.consistency_interval() if interval is None else interval
        self._is_exact = exact is not None
        self._interval = _INTERVAL if exact is None else exact
        self._next = start + self._interval

    def is_due(self, step: int) -> bool:
        """Whether it is time after so many steps; the same on all ranks, if they ask after the same steps."""
        return bool(self._interval) and step >= self._next

    def steps_left(self, step: int) -> int | None:
        """How many steps may come before the next check, not counting one that is due; None if it can wait."""
        if not self._interval or not self._is_exact:
            return None
        return self._interval if self.is_due(step) else self._next - step

    def message(self, step: int) -> np.ndarray:
        """`DIGEST_BYTES` bytes of the variables after so many steps, to combine over ranks by "max"."""
        self._next = step + self._interval
        return _with_complement(digest_of(self._variables))

    def look_at(self, maxima: np.ndarray, step: int) -> None:
        """Raise on every rank if the combined messages show that variables differ; collective then.

        Raises
        ------
        DistributedError
            It names the ranks, the step and the variables.
        """
        if _are_equal(maxima):
            return
        import xxhash

        group = world.communicator()
        digests = np.array([xxhash.xxh3_64_intdigest(_bytes_of(v)) for v in self._variables], np.uint64)
        found = group.all_gather(digests)
        differing = np.flatnonzero((found != found[0]).any(axis=0))
        lines = []
        for index in differing[:_NAMED]:
            variable, column = self._variables[index], found[:, index].tolist()
            (common, count), *_ = Counter(column).most_common()
            odd = [rank for rank, digest in enumerate(column) if digest != common]
            if 2 * count > len(column):
                said = f"{_ranks(odd, group.hosts)} {'differs' if len(odd) == 1 else 'differ'} from the others"
            else:
                said = f"{_ranks(range(group.size), group.hosts)} differ"
            lines.append(f"  {variable.path} {variable.dtype}{list(variable.shape)}: {said}")
        more = f"\n  and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
        raise DistributedError(
            f"after step {step} the ranks' variables are no longer equal:\n" + "\n".join(lines) + more + "\n"
            f"They were equal {self._interval} steps before, or when training began. Either the program changes "
            "weights on some ranks alone, or a memory or processor is faulty. Go on from a checkpoint that is older."
        )


def _bytes_of(variable: Variable) -> memoryview:
    return variable.memory.reshape(-1).view(np.uint8).data
