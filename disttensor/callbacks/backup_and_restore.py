"""`BackupAndRestore`: a run that was killed goes on with the next step."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from disttensor.callbacks.callback import Callback
from disttensor.checkpoint import CheckpointManager
from disttensor.checkpoint.interval import SaveInterval


class BackupAndRestore(Callback):
    """Saves the state of `fit` as it goes, and lets the same program, started again, go on where it was.

    Weights, optimizer, random generators, position in the epoch, metrics, history and the state of callbacks come back
    (see `Callback.state_attributes`), so that a run ends with the same bits as one that was never interrupted, on the
    same number of ranks; on another number it ends as close as such runs are. Saving goes on beside training.

    On SIGTERM, SIGUSR1, or when the time limit of a Slurm job comes near, all ranks finish a checkpoint after the same
    step and end with exit code 75: run the same command again. Ctrl-C saves a checkpoint too and ends with 130; a
    second Ctrl-C ends at once.

    What cannot be known comes back as the program makes it: a generator is asked again for the batches that were used
    already, which are left out.

    Parameters
    ----------
    backup_dir : path
        On a file system that all ranks see, and this job's alone.
    save_freq : "epoch", int, timedelta or "auto", default "epoch"
        After each epoch; after so many training batches; after so much time; or as often as loses least time, from
        what saving costs and `mtbf` (`disttensor.checkpoint.best_interval`).
    double_checkpoint : bool, default False
        Keep the last two checkpoints, so that if the newest is damaged there is one before it.
    delete_checkpoint : bool, default True
        Remove all when `fit` has come to its end.
    mtbf : timedelta, default one day
        With "auto": the mean time between failures to expect.
    keep_best : int, default 0
        Keep so many of the checkpoints with the best `monitor` besides; only those at the end of an epoch, so of
        ``save_freq="epoch"``, hold the metrics of its validation. They too are removed in the end unless
        `delete_checkpoint` is False. To keep weights rather than whole trainings, see `ModelCheckpoint`.
    monitor, mode
        See `disttensor.checkpoint.CheckpointManager`.

    Raises
    ------
    ArgumentError
        If an argument does not fit.
    """

    on_all_ranks = True

    def __init__(
        self,
        backup_dir: Any,
        save_freq: Any = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
        mtbf: timedelta = timedelta(days=1),
        keep_best: int = 0,
        monitor: str = "val_loss",
        mode: str = "min",
    ):
        super().__init__()
        self.save_freq = save_freq
        self.mtbf = mtbf
        self.delete_checkpoint = delete_checkpoint
        self.manager = CheckpointManager(backup_dir, 2 if double_checkpoint else 1, keep_best, monitor, mode)
        self.interval()

    def interval(self) -> SaveInterval:
        """A new `SaveInterval` with these arguments."""
        return SaveInterval(self.save_freq, self.mtbf)
