"""`LearningRateWarmup`: a learning rate for large batches, reached step by step."""

from __future__ import annotations

from disttensor import distributed
from disttensor.callbacks.callback import Callback, Logs, print_on_main
from disttensor.errors import ArgumentError
from disttensor.tensor import Variable


class LearningRateWarmup(Callback):
    """Scales the learning rate for a large batch, and leads up to it in the first steps.

    Not needed to train on several processes: `batch_size` is that of all of them together, so that the learning rate
    that suits one process suits many. It helps if you *enlarge* the batch because there are more of them: the learning
    rate then grows with it (the linear scaling rule), which at the beginning would be too much. With rate η and `scale`
    k, step t of the first T has the rate η·(1 + (k − 1)·(t + 1) / T), and steps from T on k·η. Nothing is traced again.

    A rate that another callback sets meanwhile is scaled from then on like the one before; after the warm-up it is left
    alone. If the optimizer has a schedule, put it into `optimizers.schedules.LinearWarmup` instead.

    Parameters
    ----------
    warmup_steps : int
        T, in steps of the optimizer; ``5 * steps_per_epoch`` in the paper.
    scale : float, optional
        k; default: the number of processes (with `distributed.set_grid`: of those with other
        data), for a `batch_size` that was multiplied by it.
    verbose : {0, 1}, default 0
        Whether to say when the warm-up is over.

    Raises
    ------
    ArgumentError
        If the steps are negative or the scale is not positive; or in `fit`, if the optimizer follows a schedule.

    References
    ----------
    Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", arXiv:1706.02677, 2017.

    Examples
    --------
    >>> import disttensor as keras
    >>> callback = keras.callbacks.LearningRateWarmup(warmup_steps=500, scale=8)
    """

    on_all_ranks = True

    def __init__(self, warmup_steps: int, scale: float | None = None, verbose: int = 0):
        super().__init__()
        if type(warmup_steps) is not int or warmup_steps < 0:
            raise ArgumentError(f"LearningRateWarmup: warmup_steps must be an int of at least 0, got {warmup_steps!r}.")
        if scale is not None and not scale > 0:
            raise ArgumentError(f"LearningRateWarmup: scale must be positive, got {scale!r}.")
        self.warmup_steps = warmup_steps
        self.scale = scale
        self.verbose = verbose
        self._applied = 1.0
        self._base: float = 0.0
        self._set: float | None = None

    def factor(self, step: int) -> float:
        """What the learning rate of a step (counted from 0) is multiplied by."""
        scale = distributed.data_group().size if self.scale is None else self.scale
        return 1 + (scale - 1) * min(1.0, (step + 1) / max(self.warmup_steps, 1))

    def on_train_begin(self, logs: Logs = None) -> None:
        """Look at the optimizer: how far it is, and whether its rate can be set."""
        optimizer = self.model.optimizer
        if not isinstance(optimizer.learning_rate, Variable):
            raise ArgumentError(
                "LearningRateWarmup: the optimizer follows a schedule, so that its rate cannot be set. Make it "
                f"with schedules.LinearWarmup(schedule, warmup_steps={self.warmup_steps}, scale=…) instead."
            )
        step = int(optimizer.iterations)
        self._applied = self.factor(step - 1) if step else 1.0
        self._set = None

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Set the rate of the step."""
        optimizer = self.model.optimizer
        step = int(optimizer.iterations)
        factor = self.factor(step)
        if factor == self._applied:
            return
        present = float(optimizer.learning_rate)
        if present != self._set:
            self._base = present / self._applied
        optimizer.learning_rate = self._base * factor
        self._set, self._applied = float(optimizer.learning_rate), factor
        if self.verbose and step + 1 >= self.warmup_steps:
            print_on_main(f"LearningRateWarmup: after {step} steps the learning rate is {self._set:.6g}")
