from __future__ import annotations

import contextlib
import csv
import random

import numpy as np
import pytest
from hypothesis import given, settings

import disttensor as keras
from disttensor.data import CSVDataset, csv_files, make_adapter
from disttensor.errors import DataError
from tests.fuzzing import damaged


def write(path, rows, end="\n", after=""):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator=end).writerows(rows)
        file.write(after)
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("seed", range(20))
def test_any_line_is_found(tmp_path, monkeypatch, end, seed):
    monkeypatch.setattr(csv_files, "_BLOCK", 32)
    monkeypatch.setattr(csv_files, "_PIECE", 96)
    choose = random.Random(seed)
    fields = ["a", "1.5", 'with "quotes"', "two\nlines", "c,d", "", "ünï", "long" * 40]
    rows = [[choose.choice(fields) for _ in range(3)] for _ in range(choose.randint(1, 60))]
    rows[-1][-1] = "end"
    file = csv_files._IndexedFile(str(write(tmp_path / "x.csv", rows, end, end * choose.randint(0, 3))), 0)
    assert file.rows == len(rows)
    for _ in range(5):
        numbers = choose.sample(range(len(rows)), choose.randint(0, len(rows)))
        found = [next(csv.reader([line])) for line in file.lines(np.array(numbers, np.int64))]
        assert found == [rows[number] for number in numbers]


HEADER = ["a", "b", "kind"]


def table(rows=300):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(rows, 2)).astype("float32"), rng.integers(0, 3, rows)
    return x, y, [[*map(repr, map(float, row)), "xyz"[kind]] for row, kind in zip(x, y, strict=True)]


@pytest.mark.parametrize("shuffle", [False, True, "batch"])
def test_it_trains_as_arrays_do(tmp_path, shuffle):
    x, y, rows = table()
    path = write(tmp_path / "x.csv", [HEADER, *rows])
    weights = []
    for dataset in (None, CSVDataset(path, "kind", class_names="xyz", batch_size=16, shuffle=shuffle)):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy")
        if dataset is None:
            model.fit(x, y, 16, epochs=2, shuffle=shuffle, verbose=0)
        else:
            model.fit(dataset, epochs=2, verbose=0)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_several_files_are_one_data_set(tmp_path):
    x, _, rows = table(50)
    paths = [write(tmp_path / f"{i}.csv", [HEADER, *part]) for i, part in enumerate((rows[:7], rows[7:8], rows[8:]))]
    dataset = CSVDataset(paths, select_columns=["b", "a"])
    assert dataset.num_samples == 50
    assert dataset.column_names == HEADER
    rows = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(dataset.read(rows), x[rows][:, ::-1])


def test_without_header_and_with_other_delimiter(tmp_path):
    (tmp_path / "x.csv").write_text('1;2;"3"\n4;;6')
    dataset = CSVDataset(
        tmp_path / "x.csv", ["c"], column_names=["a", "b", "c"], header=False, field_delim=";", na_value=-1
    )
    ((x, y),) = dataset
    assert (x.tolist(), y.tolist()) == ([[1, 2], [4, -1]], [[3], [6]])
    assert (x.dtype, y.dtype) == (np.float32, np.float32)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n")
    assert CSVDataset(tmp_path / "x.csv").column_names == ["a", "b"]


def test_it_is_read_in_pieces(tmp_path, monkeypatch):
    path = write(tmp_path / "x.csv", [HEADER, *table(20000)[2]])
    dataset = CSVDataset(path, select_columns=["a", "b"], batch_size=8, shuffle=True, workers=0)
    read = []
    original = csv_files._read
    monkeypatch.setattr(csv_files, "_read", lambda file, a, b: read.append(b - a) or original(file, a, b))
    batches = make_adapter(dataset, rank=1, size=4).epoch(0)
    next(batches)
    assert len(read) <= 2
    assert sum(read) <= 2 * 2 * 8192


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "has no rows"),
        ("a,b\n", {}, "has no rows"),
        ("a,b\n1,2\n", {"label_name": "c"}, r"lacks the columns \['c'\]: it has \['a', 'b'\]"),
        ("a,b\n1,2\n", {"select_columns": ["d"]}, r"lacks the columns \['d'\]"),
        ("a\n1\n", {"label_name": "a"}, "no column besides the targets"),
        ("a,b\n1,2\n", {"column_names": ["a"]}, "has the columns"),
        ("a,b\n1,2\n", {"class_names": ["a"]}, "needs label_name"),
        ("1,2\n", {"header": False}, "needs column_names"),
        ("a,b\n1,2\n\n3,4\n", {}, "row 3 has 0 fields; there are 2 columns"),
        ("a,b\n1,2\n3\n", {}, "row 3 has 1 fields"),
        ("a,b\n1,2\n3,x\n", {}, "row 3: column 'b' holds 'x', which is no number"),
        ("a,b\n1,\n", {}, "column 'b' holds '', which is no number"),
        ("a,b\n1,2\r3\n", {}, "row 2 is no CSV: new-line character seen in unquoted field"),
        ("a,b\n1,'" + 200_000 * "9" + "'\n", {}, "row 2 is no CSV: field larger than field limit"),
        ("a,b\rc\n1,2\n", {}, "row 1 is no CSV"),
        ("a,b\n1,z\n", {"label_name": "b", "class_names": ["x", "y"]}, r"holds 'z', which is none of class_names"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, text, options, message):
    (tmp_path / "x.csv").write_bytes(text.encode())
    with pytest.raises(DataError, match=message):
        list(CSVDataset(tmp_path / "x.csv", **options))


def test_a_missing_file_and_text_of_another_encoding(tmp_path):
    with pytest.raises(DataError, match=r"nothing.csv cannot be read. rank 0: .*No such file"):
        CSVDataset(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match="got no files"):
        CSVDataset([])
    (tmp_path / "x.csv").write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError, match="row 2 is no UTF-8 text"):
        list(CSVDataset(tmp_path / "x.csv"))


@settings(max_examples=200)
@given(content=damaged(b'a,b,c\n1,2,"x"\n3,4,"y, z"\r\n5,6,"w\nv"\n'))
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path, content):
    """Nothing but DataError, whatever is wrong."""
    (tmp_path / "x.csv").write_bytes(content)
    with contextlib.suppress(DataError):
        list(CSVDataset(tmp_path / "x.csv", label_name="c", class_names=["x", "y, z", "w\nv"]))
