"""`TerminateOnNaN`: end training that has failed."""

from __future__ import annotations

import math

from disttensor import context
from disttensor.callbacks.callback import Callback, Logs, print_on_main
from disttensor.errors import NonFiniteError


class TerminateOnNaN(Callback):
    """Stops `fit` after the batch in which the loss became NaN or infinite.

    Parameters
    ----------
    raise_error : bool, default False
        Raise a `NonFiniteError`, a `RuntimeError`, instead, so that no other callback takes the training for finished.
        It comes on all ranks, before a gradient that is NaN or infinite has changed any weight or slot or was
        accumulated, and names the ranks and the variables; the step is not counted. For that each rank looks at all
        its gradients. (The forward pass was run: moving statistics of batch normalization have seen the batch.)
    """

    on_all_ranks = True

    def __init__(self, raise_error: bool = False):
        super().__init__()
        self.raise_error = raise_error

    def on_train_begin(self, logs: Logs = None) -> None:
        """Let optimizers look at gradients."""
        context.state.checks_gradients = context.state.checks_gradients or self.raise_error

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Look at the loss."""
        loss = (logs or {}).get("loss", 0.0)
        if math.isfinite(loss):
            return
        text = f"batch {batch}: the loss is {loss}; lower the learning rate, clip gradients, or look for bad data."
        if self.raise_error:
            raise NonFiniteError(text)
        print_on_main(f"Training ends at {text}")
        self.model.stop_training = True
