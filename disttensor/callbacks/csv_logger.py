"""`CSVLogger`: the metrics of every epoch in a table."""

from __future__ import annotations

import csv
import io
import os
from typing import Any

from disttensor import distributed
from disttensor.callbacks.callback import Callback, Logs
from disttensor.saving.files import write_atomically

_MISSING = "NA"


class CSVLogger(Callback):
    """Writes a row for each epoch to a CSV file: the epoch, counted from 0, and all metrics by name.

    Rank 0 writes; a row is in the file when its epoch has ended. If a metric first appears in a later epoch, for
    example that of a validation, the table is given a column for it, with "NA" in the rows before.

    Parameters
    ----------
    filename : path
    separator : str, default ","
    append : bool, default False
        Add to an existing table, instead of starting anew.
    """

    def __init__(self, filename: Any, separator: str = ",", append: bool = False):
        super().__init__()
        self.filename = os.fspath(filename)
        self.separator = separator
        self.append = append
        self._columns: list[str] = []

    def on_train_begin(self, logs: Logs = None) -> None:
        """Read the header of an existing table, or make an empty file."""
        if not distributed.is_main():
            return
        rows = self._read() if self.append and os.path.exists(self.filename) else []
        self._columns = rows[0] if rows else []
        if not rows:
            self._write([])

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Add a row."""
        if not distributed.is_main():
            return
        values = {"epoch": epoch, **dict(sorted((logs or {}).items()))}
        new = [name for name in values if name not in self._columns]
        if new:
            self._columns += new
            old = [row + [_MISSING] * len(new) for row in self._read()[1:]]
            self._write([self._columns, *old])
        with open(self.filename, "a", newline="", encoding="utf-8") as file:
            self._writer(file).writerow([values.get(name, _MISSING) for name in self._columns])

    def get_state(self) -> dict[str, Any]:
        """The table, on rank 0: a run that goes on writes it anew, without rows of steps that will come again."""
        return {"rows": self._read() if distributed.is_main() else []}

    def set_state(self, state: dict[str, Any]) -> None:
        """Write the table anew."""
        if distributed.is_main():
            self._columns = list(state["rows"][0]) if state["rows"] else []
            self._write(state["rows"])

    def _writer(self, file: Any) -> Any:
        return csv.writer(file, delimiter=self.separator)

    def _read(self) -> list[list[str]]:
        with open(self.filename, newline="", encoding="utf-8") as file:
            return list(csv.reader(file, delimiter=self.separator))

    def _write(self, rows: list[list[str]]) -> None:
        text = io.StringIO(newline="")
        self._writer(text).writerows(rows)
        write_atomically(self.filename, text.getvalue().encode())
