"""`ProgbarLogger`: how far training is, on the terminal of rank 0."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from disttensor import distributed
from disttensor.callbacks.callback import ERASE_LINE, Callback, Logs, can_draw, now_and_then, print_on_main

_SECONDS_BETWEEN_DRAWINGS = 0.1


class ProgbarLogger(Callback):
    """Shows progress and metrics; `fit`, `evaluate` and `predict` add it unless ``verbose=0``.

    With ``verbose=1`` (and "auto") a bar with the number of steps, the remaining time and the metrics is drawn while
    training runs, if the output is a terminal and there is one process. Otherwise, and with ``verbose=2``, there is a
    line at the end of each epoch. Only rank 0 shows anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fitting = False
        self._shows = False
        self._bar: _Bar | None = None

    def set_params(self, params: dict[str, Any]) -> None:
        """Learn how much to show."""
        super().set_params(params)
        self._shows = bool(params.get("verbose")) and distributed.is_main()

    def on_train_begin(self, logs: Logs = None) -> None:
        """From now on evaluation is validation, and not shown by itself."""
        self._fitting = True

    def on_train_end(self, logs: Logs = None) -> None:
        """Evaluation is shown again."""
        self._fitting = False

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Start a bar."""
        self._begin(f"Epoch {epoch + 1}/{self.params['epochs']}")

    @now_and_then
    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Move it on."""
        self._step(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Show the epoch's metrics."""
        self._end(logs)

    def on_test_begin(self, logs: Logs = None) -> None:
        """Start a bar, unless this is validation."""
        if not self._fitting:
            self._begin("Evaluation")

    @now_and_then
    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Move it on."""
        if not self._fitting:
            self._step(batch, logs)

    def on_test_end(self, logs: Logs = None) -> None:
        """Show the metrics."""
        if not self._fitting:
            self._end(logs)

    def on_predict_begin(self, logs: Logs = None) -> None:
        """Start a bar."""
        self._begin("Prediction")

    def on_predict_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Move it on."""
        self._step(batch, None)

    def on_predict_end(self, logs: Logs = None) -> None:
        """Show how long it took."""
        self._end(None)

    def _begin(self, title: str) -> None:
        self._title = title
        self._steps = 0
        self._start = self._last_step = time.monotonic()
        draws = self._shows and self.params["verbose"] == 1 and can_draw()
        self._bar = _Bar(title, self.params.get("steps")) if draws else None

    def _step(self, batch: int, logs: Logs) -> None:
        self._steps = batch + 1
        self._last_step = time.monotonic()
        if self._bar is not None:
            self._bar.draw(self._steps, format_logs(logs))

    def _end(self, logs: Logs) -> None:
        if not self._shows:
            return
        seconds = time.monotonic() - self._start
        pace = f"{format_seconds((self._last_step - self._start) / max(self._steps, 1))}/step"
        shown = " - ".join(part for part in (f"{seconds:.0f}s", pace, format_logs(logs)) if part)
        print_on_main(f"{self._title} - {shown}")


class _Bar:
    """One line of a terminal that is written again and again.

    Nothing is hidden, redirected or left running: what else is printed, or an exception, finds the terminal as usual.
    """

    def __init__(self, title: str, total: int | None):
        self._title = title
        self._total = total
        self._start = time.monotonic()
        self._drawn = 0.0

    def draw(self, done: int, metrics: str) -> None:
        """Show the bar after so many steps, if it was not shown just now."""
        now = time.monotonic()
        if now - self._drawn < _SECONDS_BETWEEN_DRAWINGS:
            return
        self._drawn = now
        from rich.console import Console
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        steps, left = str(done), ""
        if self._total is not None:
            steps, left = f"{done}/{self._total}", _clock((now - self._start) / done * (self._total - done))
        bar = ProgressBar(total=self._total, completed=done, width=20, pulse=self._total is None)
        line = Table.grid(padding=(0, 1))
        for width in (len(self._title), 20, len(steps), len(left)):
            line.add_column(no_wrap=True, width=width)
        line.add_column(no_wrap=True, overflow="ellipsis")
        line.add_row(self._title, bar, steps, left, Text(metrics))
        console = Console()
        with console.capture() as capture:
            console.print(line, end="")
        sys.stdout.write(ERASE_LINE + capture.get().rstrip("\n"))
        sys.stdout.flush()


def format_logs(logs: Mapping[str, float | list[float]] | None) -> str:
    """Metrics as text, by name, those of validation last: ``accuracy: 0.9100 - loss: 0.3100 - val_loss: 0.2900``."""
    ordered = sorted((logs or {}).items(), key=lambda item: (item[0].startswith("val_"), item[0]))
    return " - ".join(f"{name}: {_number(value)}" for name, value in ordered)


def _number(value: float | list[float]) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_number, value))}]"
    return f"{value:.4f}" if value == 0 or abs(value) > 1e-3 else f"{value:.4e}"


def format_seconds(seconds: float) -> str:
    """A short duration in a fitting unit: ``1.5s``, ``20ms``, ``300us``."""
    if seconds >= 1:
        return f"{seconds:.1f}s"
    return f"{seconds * 1e3:.0f}ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f}us"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
