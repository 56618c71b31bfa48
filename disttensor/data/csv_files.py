"""`CSVDataset`: text files with a row for each sample, of which each process parses its own."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from disttensor import config, distributed, dtypes
from disttensor.data.dataset import Dataset
from disttensor.errors import DataError

_BLOCK = 8192
_MAX_BLOCKS = 1 << 20
_PIECE = 4 << 20
_NEWLINE, _QUOTE = ord("\n"), ord('"')


class CSVDataset(Dataset):
    """Rows of CSV files, read and parsed when they are needed.

    A file is looked through once, each rank a part of it, for the number of rows that end in each block of 8 KiB (of
    more in files beyond 8 GiB). That index has a thousandth of the file's size, 8 MiB at most; with it a row is found
    by reading one block. Quotes may contain delimiters and line breaks (RFC 4180). With several processes make the data
    set on all of them, as a model.

    Parameters
    ----------
    file_paths : path or sequence of paths
        Files with the same columns, one after another.
    label_name : str or sequence of str, optional
        Column or columns that are the targets. Default: there are none.
    select_columns : sequence of str, optional
        Which columns are the inputs, in this order. Default: all but the targets.
    column_names : sequence of str, optional
        Default: the first line of each file.
    header : bool, default True
        Whether the first line of each file is no sample.
    field_delim : str, default ","
    na_value : float, optional
        What stands for an empty field, such as ``nan``. Default: an empty field is an error.
    class_names : sequence of str, optional
        The texts that the column `label_name` holds; y is their index.
    batch_size, shuffle, seed, workers
        See `Dataset`.

    Attributes
    ----------
    column_names : list of str
        Of all columns.

    Raises
    ------
    DataError
        If a file cannot be read, has no rows, or lacks a column; when rows are read, if a field is no number.

    Examples
    --------
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "iris.csv")
    ...     with open(path, "w") as file:
    ...         _ = file.write("width,length,kind\\n1.5,2,setosa\\n0.5,1,virginica\\n")
    ...     dataset = CSVDataset(path, label_name="kind", class_names=["setosa", "virginica"])
    ...     [(x.tolist(), y.tolist()) for x, y in dataset]
    [([[1.5, 2.0], [0.5, 1.0]], [0, 1])]
    """

    has_equal_rows = True

    def __init__(
        self,
        file_paths: Any,
        label_name: str | Sequence[str] | None = None,
        select_columns: Sequence[str] | None = None,
        column_names: Sequence[str] | None = None,
        header: bool = True,
        field_delim: str = ",",
        na_value: float | None = None,
        class_names: Sequence[str] | None = None,
        batch_size: int = 32,
        shuffle: bool | str = False,
        seed: int | None = None,
        workers: int = 1,
    ):
        paths = [file_paths] if isinstance(file_paths, (str, os.PathLike)) else list(file_paths)
        if not paths:
            raise DataError("CSVDataset got no files.")
        if column_names is None and not header:
            raise DataError("CSVDataset(header=False) needs column_names.")
        self._delimiter = field_delim
        self._na_value = na_value
        self._files = [_IndexedFile(os.fspath(path), int(header)) for path in paths]
        headers = [
            self._fields(file.lines(np.array([0]))[0], f"{file.path}, row 1") if header else [] for file in self._files
        ]
        self.column_names = list(headers[0] if column_names is None else column_names)
        for file, names in zip(self._files, headers, strict=True):
            if names and len(names) != len(self.column_names) or (column_names is None and names != headers[0]):
                raise DataError(f"{file.path} has the columns {names}, expected {self.column_names}.")
        targets = [label_name] if isinstance(label_name, str) else list(label_name or ())
        inputs = [n for n in self.column_names if n not in targets] if select_columns is None else list(select_columns)
        missing = [name for name in (*inputs, *targets) if name not in self.column_names]
        if missing or not inputs:
            raise DataError(
                f"{paths[0]} lacks the columns {missing}: it has {self.column_names}."
                if missing
                else f"{paths[0]} has no column besides the targets {targets}."
            )
        if class_names is not None and len(targets) != 1:
            raise DataError("CSVDataset(class_names=…) needs label_name, the name of one column.")
        self._inputs = [self.column_names.index(name) for name in inputs]
        self._targets = [self.column_names.index(name) for name in targets]
        self._single_target = isinstance(label_name, str)
        self._classes = None if class_names is None else {name: i for i, name in enumerate(class_names)}
        self._ends = np.cumsum([file.rows for file in self._files])
        super().__init__(int(self._ends[-1]), batch_size, shuffle, seed, workers)

    def read(self, rows: np.ndarray) -> Any:
        """See `Dataset.read`."""
        floatx = dtypes.to_numpy(config.floatx())
        x = np.empty((len(rows), len(self._inputs)), floatx)
        y = np.empty((len(rows), len(self._targets)), floatx if self._classes is None else np.int32)
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers).tolist():
            file = self._files[number]
            places = np.flatnonzero(numbers == number)
            lines = rows[places] - (self._ends[number] - file.rows) + file.first
            for place, line, text in zip(places.tolist(), lines.tolist(), file.lines(lines), strict=True):
                where = f"{file.path}, row {line + 1}"
                fields = self._fields(text, where)
                if len(fields) != len(self.column_names):
                    names = self.column_names
                    raise DataError(f"{where} has {len(fields)} fields; there are {len(names)} columns {names}.")
                x[place] = [self._number(fields, column, where) for column in self._inputs]
                y[place] = [self._target(fields, column, where) for column in self._targets]
        if not self._targets:
            return x
        return x, y[:, 0] if self._single_target else y

    def _fields(self, line: str, where: str) -> list[str]:
        try:
            return next(csv.reader([line], delimiter=self._delimiter), [])
        except csv.Error as error:
            raise DataError(f"{where} is no CSV: {error}.") from None

    def _number(self, fields: list[str], column: int, where: str) -> float:
        try:
            return float(fields[column])
        except ValueError:
            if not fields[column].strip() and self._na_value is not None:
                return self._na_value
            raise DataError(
                f"{where}: column {self.column_names[column]!r} holds {fields[column]!r}, which is no number. Leave "
                "the column out with select_columns, or give na_value for empty fields."
            ) from None

    def _target(self, fields: list[str], column: int, where: str) -> float:
        if self._classes is None:
            return self._number(fields, column, where)
        return _class_of(fields[column], self._classes, f"{where}: column {self.column_names[column]!r}")


def _class_of(text: str, classes: Mapping[str, int], where: str) -> int:
    try:
        return classes[text]
    except KeyError:
        raise DataError(f"{where} holds {text!r}, which is none of class_names {list(classes)}.") from None


class _IndexedFile:
    """Finds lines of a text file by number.

    A line ends at a line break outside quotes: one with an even number of quotation marks before it. Blocks are
    counted without knowing what came before them, for both cases, so that ranks can share the work.

    Parameters
    ----------
    path : str
    first : int
        Lines at the beginning that are no rows.

    Attributes
    ----------
    rows : int
        Lines without those, and without empty ones at the end.
    """

    def __init__(self, path: str, first: int):
        self.path = path
        self.first = first
        group = distributed.communicator()
        error, counts = "", np.empty((0, 3), np.int64)
        try:
            self._size = self._length_of_content()
            self._block = max(_BLOCK, -(-self._size // _MAX_BLOCKS // _BLOCK) * _BLOCK)
            blocks = -(-self._size // self._block)
            begin, end = (blocks * (group.rank + i) // group.size for i in (0, 1))
            counts = self._count(begin, end)
        except OSError as caught:
            error = f"rank {group.rank}: {caught}"
        errors = [text for text in group.all_gather_object(error) if text]
        if errors:
            raise DataError(f"{path} cannot be read. {errors[0]}")
        even, odd, quotes = group.all_gatherv(counts).T
        self._is_quoted = np.concatenate([[0], np.cumsum(quotes) % 2]).astype(bool)
        self._ends = np.concatenate([[0], np.cumsum(np.where(self._is_quoted[:-1], odd, even))])
        self._lines = int(self._ends[-1]) + int(self._size > 0)
        self.rows = self._lines - first
        if self.rows < 1:
            raise DataError(f"{path} has no rows.")

    def _length_of_content(self) -> int:
        """The size of the file without line breaks at its end."""
        size = os.stat(self.path).st_size
        with self._open() as file:
            while size > 0:
                tail = _read(file, max(0, size - 4096), size)
                kept = len(tail.rstrip(b"\r\n"))
                size -= len(tail) - kept
                if kept:
                    break
        return size

    def _open(self) -> io.FileIO:
        # For each batch anew: there may be more files than a process may hold open.
        file = io.FileIO(self.path, "rb")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # what is needed is read in one piece
        return file

    def _count(self, begin: int, end: int) -> np.ndarray:
        """Of some blocks, shape (blocks, 3): line breaks after an even and an odd number of quotes, and quotes."""
        counts = np.zeros((end - begin, 3), np.int64)
        stride = max(1, _PIECE // self._block)
        with self._open() as file:
            for block in range(begin, end, stride):
                last = min(block + stride, end)
                text = np.zeros((last - block, self._block), np.uint8)
                data = _read(file, block * self._block, min(last * self._block, self._size))
                text.reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
                breaks, quotes = text == _NEWLINE, text == _QUOTE
                count = counts[block - begin : last - begin]
                count[:, 0] = np.count_nonzero(breaks, axis=1)
                if quotes.any():
                    count[:, 2] = np.count_nonzero(quotes, axis=1)
                    count[:, 1] = np.count_nonzero(breaks & _odd(quotes), axis=1)
                    count[:, 0] -= count[:, 1]
        return counts

    def lines(self, numbers: np.ndarray) -> list[str]:
        """The text of some lines, which are read in the order of the file.

        Parameters
        ----------
        numbers : int64 array, shape (n,)
        """
        order = np.argsort(numbers, kind="stable")
        wanted = numbers[order]
        # A line begins behind the line break with its number, and ends before the next; counted from 1.
        first = np.maximum(np.searchsorted(self._ends, wanted) - 1, 0)
        last = np.minimum(np.searchsorted(self._ends, wanted + 1) - 1, len(self._ends) - 2)
        apart = np.flatnonzero(first[1:] > last[:-1] + 1) + 1
        found = [""] * len(wanted)
        with self._open() as file:
            for some in np.split(np.arange(len(wanted)), apart) if len(wanted) else []:
                block = int(first[some[0]])
                end = min((int(last[some[-1]]) + 1) * self._block, self._size)
                lines = self._split(_read(file, block * self._block, end), bool(self._is_quoted[block]))
                before = int(self._ends[block])
                for i in some.tolist():
                    found[order[i]] = self._text(lines[wanted[i] - before], int(wanted[i]))
        return found

    def _split(self, data: bytes, is_quoted: bool) -> list[bytes]:
        """The lines of a part of the file, which begins inside quotes or not."""
        if not is_quoted and b'"' not in data:
            return data.split(b"\n")
        text = np.frombuffer(data, np.uint8)
        is_end = (text == _NEWLINE) & (_odd((text == _QUOTE)[None])[0] == is_quoted)
        ends = np.flatnonzero(is_end).tolist()
        return [data[a:b] for a, b in zip([0, *(end + 1 for end in ends)], [*ends, len(data)], strict=True)]

    def _text(self, line: bytes, number: int) -> str:
        try:
            return line.decode("utf-8-sig" if number == 0 else "utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}, row {number + 1} is no UTF-8 text: {error}.") from None


def _read(file: io.FileIO, begin: int, end: int) -> bytes:
    pieces = []
    while begin < end and (piece := os.pread(file.fileno(), end - begin, begin)):
        pieces.append(piece)
        begin += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _odd(marks: np.ndarray) -> np.ndarray:
    """Whether the number of marks up to each place in its row is odd."""
    return np.bitwise_xor.accumulate(marks, axis=1)
