"""`StragglerReport`: which rank the others waited for, and what it was doing meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from disttensor import distributed
from disttensor.callbacks.callback import Callback, Logs, print_on_main
from disttensor.distributed import activity

_WORTH = 0.1
"""A line is printed if ranks waited for so much of an epoch, on average."""
_PARTS = (activity.READING, activity.COMPUTING, activity.IN_CALLBACKS, activity.VALIDATING)


class StragglerReport(Callback):
    """Says after an epoch for whom ranks waited, if they did for a tenth of it or more; `fit` adds it.

    Whoever comes last to a collective waits for nobody. So a rank's time in collectives, beyond that of the rank with
    the least, was spent waiting, and that rank is the one to look at: `report` names what took it longer than the
    others. It costs one small message an epoch.
    """

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Note where this rank's time has gone so far."""
        self._before = activity.spent()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Compare with the other ranks."""
        before, after = self._before, activity.spent()
        total = [after.total.get(part, 0.0) - before.total.get(part, 0.0) for part in _PARTS]
        blocked = [after.blocked.get(part, 0.0) - before.blocked.get(part, 0.0) for part in _PARTS]
        rows = distributed.communicator().all_gather(np.array([total, blocked]))
        text = report(rows[:, 0], rows[:, 1], distributed.communicator().hosts)
        if text and self.params.get("verbose"):
            print_on_main(f"Epoch {epoch + 1}/{self.params['epochs']}: {text}")


def report(total: np.ndarray, blocked: np.ndarray, hosts: Sequence[str]) -> str:
    """For whom ranks waited, or nothing if that is not worth a word.

    Parameters
    ----------
    total, blocked : array, shape (ranks, parts)
        Seconds of each rank reading data, computing, in callbacks, and so on: all, and of these in collectives.
    hosts : sequence of str

    Examples
    --------
    >>> total, blocked = np.array([[1.0, 9.0, 0.0], [6.0, 4.0, 0.0]]), np.array([[0, 5.5, 0], [0, 0.5, 0]])
    >>> report(total, blocked, ["a", "b"])
    'ranks waited 2.5 s (25 %) on average for rank 1 (host b): reading data took it 6.0 s, the others 1.0 s.'
    """
    waited = blocked.sum(axis=1)
    waited = waited - waited.min()
    share = waited.mean() / max(total.sum(axis=1).mean(), 1e-9)
    if share < _WORTH:
        return ""
    slowest = int(np.argmin(waited))
    own = total - blocked
    others = np.median(np.delete(own, slowest, axis=0), axis=0)
    part = int(np.argmax(own[slowest] - others))
    return (
        f"ranks waited {waited.mean():.1f} s ({share:.0%}) on average for rank {slowest} (host {hosts[slowest]}): "
        f"{_PARTS[part]} took it {own[slowest, part]:.1f} s, the others {others[part]:.1f} s."
    ).replace("%)", " %)")
