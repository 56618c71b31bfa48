"""`CallbackList`: tells every callback."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from disttensor import distributed
from disttensor.callbacks.callback import Callback
from disttensor.callbacks.history import History
from disttensor.callbacks.progress import ProgbarLogger
from disttensor.callbacks.straggler_report import StragglerReport
from disttensor.errors import ArgumentError


class CallbackList:
    """Calls the hooks of several callbacks, in order.

    Parameters
    ----------
    callbacks : iterable of Callback
    model : Model
    params : dict
        See `Callback`.
    """

    def __init__(self, callbacks: Iterable[Callback], model: Any, params: dict[str, Any]):
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            callback.set_model(model)
            callback.set_params(params)

    @classmethod
    def make(
        cls, callbacks: Any, *, model: Any, verbose: Any, epochs: int, steps: int | None, history: bool = False
    ) -> CallbackList:
        """The list for one call of fit, evaluate or predict.

        Parameters
        ----------
        callbacks : Callback, list of Callback, CallbackList or None
            A list that was made already is used as it is.
        verbose : {"auto", 0, 1, 2}
            Adds a `ProgbarLogger` unless 0.
        history : bool
            Adds a `History`, which becomes ``model.history``, and with several ranks a `StragglerReport`.
        """
        if isinstance(callbacks, CallbackList):
            return callbacks
        if verbose not in ("auto", 0, 1, 2):
            raise ArgumentError(f"verbose must be 'auto', 0, 1 or 2, got {verbose!r}.")
        given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())
        for callback in given:
            if not isinstance(callback, Callback):
                raise ArgumentError(f"callbacks must be Callback objects, got {type(callback).__name__}: {callback!r}.")
        verbose = 1 if verbose == "auto" else int(verbose)
        if verbose and not any(isinstance(c, ProgbarLogger) for c in given):
            given.append(ProgbarLogger())
        if history and distributed.size() > 1 and not any(isinstance(c, StragglerReport) for c in given):
            given.append(StragglerReport())
        if history:
            model.history = next((c for c in given if isinstance(c, History)), None) or History()
            if model.history not in given:
                given.append(model.history)
        return cls(given, model, {"verbose": verbose, "epochs": epochs, "steps": steps})

    def get_state(self) -> list[Any]:
        """The names of the classes of those callbacks that have a state, each with its state."""
        found = [[type(c).__name__, c.get_state()] for c in self.callbacks]
        return [entry for entry in found if entry[1]]

    def set_state(self, states: list[Any]) -> None:
        """Give states back: the n-th of a class to the n-th callback of that class."""
        left = list(states)
        for callback in self.callbacks:
            found = next((entry for entry in left if entry[0] == type(callback).__name__), None)
            if found is not None:
                left.remove(found)
                callback.set_state(found[1])

    @property
    def see_every_train_batch(self) -> bool:
        """Whether the hooks of training batches must be called for each."""
        return self._see_every("train")

    @property
    def see_every_test_batch(self) -> bool:
        """Whether those of `evaluate` must."""
        return self._see_every("test")

    def _see_every(self, kind: str) -> bool:
        names = [f"on_{kind}_batch_begin", f"on_{kind}_batch_end"]
        return any(
            _defines(callback, name) and getattr(getattr(callback, name), "now_and_then", None) is not True
            for callback in self.callbacks for name in names
        ) or any(hasattr(type(self), name) for name in names)  # fmt: skip

    def __getattr__(self, name: str) -> Callable[..., None]:
        """A hook of all callbacks that define it themselves."""
        if not name.startswith("on_"):
            raise AttributeError(name)
        hooks = [getattr(c, name) for c in self.callbacks if _defines(c, name)]
        count = 2 if "batch" in name or "epoch" in name else 1

        def call(*args: Any) -> None:
            if not hooks:
                return
            if len(args) < count:
                args += ({},)  # hooks may be written without a default for logs
            for hook in hooks:
                hook(*args)

        setattr(self, name, call)
        return call


def _defines(callback: Callback, name: str) -> bool:
    """Whether a hook does anything; the batch hooks of the base only pass on to others."""
    names = {"on_train_batch_begin": "on_batch_begin", "on_train_batch_end": "on_batch_end"}
    return any(
        hook is not None and (hook in vars(callback) or getattr(type(callback), hook) is not getattr(Callback, hook))
        for hook in (name, names.get(name))
    )
