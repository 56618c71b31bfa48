"""What every rank of `test_ctrl_c` runs: SIGINT in `fit`, `evaluate` or `predict`, to one rank or one after another."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

import numpy as np

import disttensor as keras
from disttensor import config, distributed
from disttensor.callbacks import LambdaCallback
from disttensor.training import signals

comm = distributed.communicator()
P, RANK = comm.size, comm.rank
PROCESSES = comm.all_gather_object(os.getpid())
BATCHES = 4
X = np.random.default_rng(0).standard_normal((12 * BATCHES, 20)).astype("float32")
Y = np.arange(len(X)) % 5


def build(eager=False):
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((20,)), dense(300, "relu"), dense(100, "relu"), dense(5)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], run_eagerly=eager)
    return model


def fit(model, rows=None, **hooks):
    options = {name: hooks.pop(name) for name in ("epochs", "validation_data") if name in hooks}
    callbacks = [LambdaCallback(**hooks)] if hooks else []
    model.fit(X[:rows], Y[:rows], 12, shuffle=False, verbose=0, callbacks=callbacks, **options)


def press(rank=RANK):
    if rank == RANK:
        signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def interrupted():
    try:
        yield
    except KeyboardInterrupt:
        return
    raise AssertionError("it came to its end")


def agreed(model):
    """How many steps were taken, after a comparison of all variables between ranks."""
    state = b"".join(v.numpy().tobytes() for v in [*model.weights, *model.optimizer.variables])
    assert comm.all_gather_object(state.hex()) == [state.hex()] * P
    return int(model.optimizer.iterations.numpy())


def check_hooks():
    """The signal comes to one rank in a callback: all leave when they look next, and go on together."""
    check_hook("on_train_begin", 0, None)
    check_hook("on_epoch_begin", P - 1, None)
    check_hook("on_train_batch_end", 0, 3)
    check_hook("on_train_batch_end", 1, 3, eager=True)
    check_hook("on_test_begin", P - 1, BATCHES)
    check_hook("on_epoch_end", 0, 3 * BATCHES)


def check_hook(hook, rank, want, eager=False):
    ended = []

    def act(number=None, logs=None):
        if number == 2 or not isinstance(number, int):
            press(rank)

    model = build(eager)
    with interrupted():
        fit(model, epochs=1000, validation_data=(X, Y), on_train_end=ended.append, **{hook: act})
    steps = agreed(model)
    assert not ended
    assert want in (None, steps), (hook, steps)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    model.evaluate(X, Y, verbose=0)
    fit(model)
    assert agreed(model) == steps + BATCHES
    if want is not None:  # the weights were those after that step
        other = build(eager)
        for first in range(0, steps, BATCHES):
            fit(other, rows=12 * min(BATCHES, steps - first))
        fit(other)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(model.get_weights(), other.get_weights(), strict=True))


def check_reading():
    """It comes while one rank reads data, and ends nothing there."""

    def batches():
        for number in range(1000):
            if number == 5:
                press(P - 1)
            rows = slice(12 * (number % BATCHES), 12 * (number % BATCHES + 1))
            yield X[rows], Y[rows]

    model = build()
    with interrupted():
        model.fit(batches(), verbose=0)
    agreed(model)
    fit(model)


def check_machine_code():
    """It comes at any time, mostly when the rank runs steps without Python, or waits for others."""

    def send(epoch, logs):
        if epoch == 5 and RANK == 0:
            threading.Timer(0.05, os.kill, (PROCESSES[-1], signal.SIGINT)).start()

    model = build()
    for _ in range(2):
        with interrupted():
            fit(model, epochs=1_000_000, on_epoch_begin=send)
        agreed(model)
    fit(model)


def check_one_after_another():
    """When one rank has left already, the signal comes to the others: not into what they do next."""
    signals._BETWEEN_RANKS = 200
    model = build()
    with interrupted():
        fit(model, on_train_batch_end=lambda batch, logs: press(0))
    if RANK == 0:
        time.sleep(0.3)
        for process in PROCESSES[1:]:
            os.kill(process, signal.SIGINT)
    assert agreed(model) == 1
    signals._BETWEEN_RANKS = 0


def check_behind_the_last_look():
    model = build()
    with interrupted():
        fit(model, on_train_end=lambda logs: press())
    assert agreed(model) == BATCHES


def check_evaluation():
    """All leave after the same step, so that sums of what they do next are those of the same things."""
    check_evaluation_hook("evaluate", "on_test_begin", 0)
    check_evaluation_hook("evaluate", "on_test_batch_end", P - 1)
    check_evaluation_hook("evaluate", "on_test_batch_end", 0, eager=True)
    check_evaluation_hook("evaluate", "on_test_end", None)
    check_evaluation_hook("predict", "on_predict_begin", P - 1)
    check_evaluation_hook("predict", "on_predict_batch_end", 0)
    check_evaluation_hook("predict", "on_predict_end", P - 1)


def check_evaluation_hook(method, hook, rank, eager=False):
    model, batches = build(eager), []

    def act(number=None, logs=None):
        if number == 2 or not isinstance(number, int):
            press(RANK if rank is None else rank)

    def note(number, logs=None):
        batches.append(number)

    watchers = [LambdaCallback(**{hook: act}), LambdaCallback(on_test_batch_end=note, on_predict_batch_end=note)]
    with interrupted():
        getattr(model, method)(
            X, batch_size=1, callbacks=watchers, verbose=0, **({"y": Y} if method == "evaluate" else {})
        )
    everywhere = comm.all_gather_object(batches)
    assert everywhere == [batches] * P, everywhere
    assert (len(batches) == len(X)) == hook.endswith(("test_end", "predict_end")), (hook, len(batches))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    fit(model)
    assert agreed(model) == BATCHES


def check_evaluation_in_machine_code():
    """It comes at any time, mostly when the rank runs steps without Python, or waits for others."""

    def send(logs):
        if RANK == P - 1:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()

    model, rows = build(), np.arange(300_000) % len(X)
    many, labels = X[rows], Y[rows]
    for method, data in (("evaluate", (many, labels)), ("predict", (many,))):
        with interrupted():
            sender = LambdaCallback(on_test_begin=send, on_predict_begin=send)
            getattr(model, method)(*data, batch_size=12, callbacks=[sender], verbose=0)
        fit(model)
        agreed(model)


def check_own_handlers():
    """A handler of the program's, or none at all, stays; the other ranks still have Python's."""
    heard = []
    for handler in (lambda *_: heard.append(1), signal.SIG_IGN):
        own = handler if RANK == 0 else signal.default_int_handler
        signal.signal(signal.SIGINT, own)
        model = build()
        fit(model, on_train_batch_end=lambda batch, logs: press(0))
        assert signal.getsignal(signal.SIGINT) is own
        with interrupted():
            fit(model, on_train_batch_end=lambda batch, logs: press(P - 1))
        assert agreed(model) == BATCHES + 1
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert len(heard) == BATCHES * (RANK == 0)


def check_threads():
    """In another thread than the main one `fit` cannot listen, and does not try to."""
    found = []

    def note(epoch, logs):
        found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=lambda: fit(build(), on_epoch_end=note))
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell starts in the background
signals._BETWEEN_RANKS = 0
config.set_single_copy(sys.argv[1] == "single copy")
check_hooks()
check_reading()
check_machine_code()
check_one_after_another()
check_behind_the_last_look()
check_evaluation()
check_evaluation_in_machine_code()
check_own_handlers()
check_threads()
comm.barrier()
if RANK == 0:
    print("every check passed")
