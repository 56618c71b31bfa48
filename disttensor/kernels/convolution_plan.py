"""How a convolution is cut into units of work, and the tables that say where everything lies.

A unit is a *position* (some rows and columns of the output of one image, in one plane of a volume) of one image, or of
several small ones. Sequences and images are volumes with missing axes of size 1. How the work is cut depends on shapes
alone, so results do not depend on the number of threads; and every element of an output is a sum in an order of its
own, so it does not depend on the number of images either.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from disttensor.errors import ShapeError
from disttensor.kernels.windows import Padding, Sizes, offsets, output_sizes

# Places of the output in a unit, so that what one needs of input and output stays in the first two caches.
_PLACES = 256
# The gradient of the kernel reads one cache line of each place at a time; those of a unit must not evict each other,
# which depends on how far apart they are.
_SPAN = 1 << 14
_FEWEST = 64
# The gradient of the kernel is summed in so many parts at most, which threads compute side by side.
_PARTS = 8
_PART_BYTES = 16 << 20
# Longer runs of contiguous numbers are not joined into one: the sums over them are blocked.
_LONGEST_RUN = 512


class Geometry(NamedTuple):
    """The sizes of one convolution; a tuple holds a number for each spatial axis."""

    batch: int
    size: Sizes
    channels: int
    window: Sizes
    output: Sizes
    filters: int
    strides: Sizes
    padding: Padding
    dilation: Sizes
    groups: int

    @classmethod
    def of(
        cls, x: Sizes, kernel: Sizes, y: Sizes, strides: Sizes, padding: Padding, dilation: Sizes, groups: int
    ) -> Geometry:
        """Check that the shapes of input, kernel and result fit each other."""
        if not len(x) == len(kernel) == len(y) == len(strides) + 2:
            raise ShapeError(
                f"a convolution over {len(strides)} axes needs arrays of {len(strides) + 2} axes; got input {x}, "
                f"kernel {kernel}, result {y}."
            )
        if x[-1] != kernel[-2] * groups or kernel[-1] % groups:
            raise ShapeError(
                f"an input of shape {x} does not fit a kernel of shape {kernel} with {groups} groups: it needs "
                f"{kernel[-2]} × {groups} channels, and a number of filters divisible by {groups}."
            )
        output = output_sizes(x[1:-1], kernel[:-2], strides, padding, dilation)
        if y != (x[0], *output, kernel[-1]):
            raise ShapeError(
                f"convolving an input of shape {x} with a kernel of shape {kernel}, strides {strides}, padding "
                f"{padding} and dilation {dilation} gives {(x[0], *output, kernel[-1])}, not {y}."
            )
        return cls(
            x[0], x[1:-1], x[-1], kernel[:-2], output, kernel[-1], strides, padding, dilation, groups
        )  # fmt: skip

    @property
    def depth(self) -> int:
        """Channels that a filter sees."""
        return self.channels // self.groups

    @property
    def elements(self) -> int:
        """Numbers in a filter."""
        return math.prod(self.window) * self.depth

    @property
    def work(self) -> int:
        """Multiply-adds in all."""
        return self.batch * math.prod(self.output) * self.elements * self.filters // max(self.groups, 1)

    def of_three_axes(self) -> Geometry:
        """The same, with missing axes of size 1 in front."""
        ones = (1,) * (3 - len(self.size))
        return Geometry(
            self.batch, (*ones, *self.size), self.channels, (*ones, *self.window), (*ones, *self.output), self.filters,
            (*ones, *self.strides), (*((0, 0),) * len(ones), *self.padding), (*ones, *self.dilation), self.groups,
        )  # fmt: skip


class Units(NamedTuple):
    """The units of a convolution. All tables are of int64, all distances in bytes.

    Attributes
    ----------
    positions : array, shape (positions, fields)
        For each: where its input begins in an image (if that needs no padding), and its output; how many places, rows
        and columns it has; where its part of `places`, `row_places` and `lines` begins; and how many bytes of each
        line are zeros before, numbers inside, and zeros behind.
    images : int
        How many images are taken together.
    padded : bool
        Whether lines are copied between zeros.
    lines : array
        For each line that a position sees: where it comes from in an image; −1 if it lies in the padding.
    line_count, line_size : int
        Lines of a position and image, and bytes of a line.
    places : array
        Where the window of each place of the output lies.
    row_places, row_outputs : array
        Where the first window of each row of the output, and that row, lie.
    outputs : array
        Where each place of the output lies.
    elements : array
        Where each element of a window lies, of one channel.
    column : int
        From one window to the next in a row.
    """

    positions: np.ndarray
    images: int
    padded: bool
    lines: np.ndarray
    line_count: int
    line_size: int
    places: np.ndarray
    row_places: np.ndarray
    row_outputs: np.ndarray
    outputs: np.ndarray
    elements: np.ndarray
    column: int

    def count(self, batch: int) -> int:
        """How many units there are."""
        return len(self.positions) * -(-batch // self.images)

    def of_channels(self, depth: int, itemsize: int) -> np.ndarray:
        """Where each element of a window lies, of every channel."""
        return _table((self.elements[:, None] + np.arange(depth) * itemsize).ravel())


@dataclass
class _Axis:
    """One axis of a convolution."""

    size: int
    window: int
    output: int
    stride: int
    before: int
    dilation: int

    def first(self, output: int) -> int:
        """Where the window of an output begins; negative in the padding."""
        return output * self.stride - self.before

    def seen(self, outputs: int) -> int:
        """How many places so many neighbouring outputs see."""
        return (outputs - 1) * self.stride + (self.window - 1) * self.dilation + 1

    @property
    def padded(self) -> bool:
        """Whether a window reaches into the padding."""
        return self.before > 0 or self.first(0) + self.seen(self.output) > self.size


def parts_of_sum(unit_count: int, elements: int, row_bytes: int) -> tuple[int, int]:
    """In how many parts the gradient of the kernel is summed up, and in how many blocks of elements each."""
    chunks = max(1, min(_PARTS, _PART_BYTES // max(1, elements * row_bytes))) if unit_count else 0
    chunks = min(chunks, unit_count)
    return chunks, max(1, min(_PARTS // max(1, chunks), elements // 64))


def places_to_multiply() -> int:
    """Places of the output in a unit."""
    return _PLACES


def places_to_sum(shape: Geometry, itemsize: int) -> int:
    """Places of the output in a unit of the gradient of the kernel."""
    apart = shape.strides[-1] * shape.channels * itemsize
    return min(_PLACES, max(_FEWEST, _SPAN // max(1, apart)))


def taps(shape: Geometry, work: Units) -> tuple[np.ndarray, int]:
    """Where the runs of contiguous numbers of a window lie, and how long they are."""
    run = shape.window[-1] * shape.depth
    if shape.groups == 1 and shape.dilation[-1] == 1 and run <= _LONGEST_RUN:
        return _table(work.elements[:: shape.window[-1]]), run
    return work.elements, shape.depth


@functools.lru_cache(maxsize=256)
def units(shape: Geometry, itemsize: int, out_strides: Sizes, most: int) -> Units:
    """Cut a convolution into units.

    Parameters
    ----------
    shape : Geometry
        Of three axes.
    itemsize : int
    out_strides : tuple of int
        The strides of the output, in bytes, without that of its channels, which are contiguous.
    most : int
        Places of the output in a unit.
    """
    steps = zip(shape.size, shape.window, shape.output, shape.strides, shape.padding, shape.dilation, strict=True)
    planes, rows, columns = (_Axis(n, w, o, s, before, d) for n, w, o, s, (before, _), d in steps)
    pixel = shape.channels * itemsize
    line, plane = columns.size * pixel, rows.size * columns.size * pixel
    wide = min(columns.output, most) or 1
    high = min(max(1, most // wide), rows.output) or 1
    whole = planes.output == 1 and high == rows.output and wide == columns.output
    images = max(1, min(most // (high * wide), shape.batch)) if whole else 1
    padded = planes.padded or rows.padded or columns.padded
    line_size = columns.seen(wide) * pixel if padded else line
    lines_high = rows.seen(high) if padded else rows.size
    # Copied planes lie next to each other, without those between that the window leaves out.
    to_plane = lines_high * line_size if padded else planes.dilation * plane
    to_image = planes.window * lines_high * line_size if padded else planes.size * plane
    column, row = columns.stride * pixel, rows.stride * line_size

    positions: list[tuple[int, ...]] = []
    lines: list[int] = []
    tables: dict[int, tuple[int, int]] = {}
    places: list[np.ndarray] = []
    outputs: list[np.ndarray] = []
    row_places: list[np.ndarray] = []
    row_outputs: list[np.ndarray] = []
    image_out, plane_out, row_out, column_out = out_strides
    tops, lefts = range(0, rows.output, high), range(0, columns.output, wide)
    for a, top, left in itertools.product(range(planes.output), tops, lefts):
        height, width = min(high, rows.output - top), min(wide, columns.output - left)
        if width not in tables:
            tables[width] = 8 * sum(t.size for t in places), 8 * sum(t.size for t in row_places)
            row_places.append(offsets((images, high), (to_image, row)))
            row_outputs.append(offsets((images, high), (image_out, row_out)))
            places.append(offsets((images, high, width), (to_image, row, column)))
            outputs.append(offsets((images, high, width), (image_out, row_out, column_out)))
        first = columns.first(left)
        before = max(0, -first)
        inside = max(0, min(columns.size, first + columns.seen(width)) - max(first, 0))
        before = before if inside else columns.seen(wide)
        start = planes.first(a) * plane + rows.first(top) * line + first * pixel
        positions.append(
            (start, a * plane_out + top * row_out + left * column_out, height * width, height, width,
             *tables[width], 8 * len(lines),
             before * pixel, inside * pixel, line_size - (before + inside) * pixel)
        )  # fmt: skip
        if padded:
            for u, i in itertools.product(range(planes.window), range(lines_high)):
                p, r = planes.first(a) + u * planes.dilation, rows.first(top) + i
                exists = 0 <= p < planes.size and 0 <= r < rows.size and inside
                lines.append(p * plane + r * line + max(first, 0) * pixel if exists else -1)
    elements = offsets(shape.window, (to_plane, rows.dilation * line_size, columns.dilation * pixel))
    return Units(
        _table(positions).reshape(-1, 11), images, padded, _table(lines), planes.window * lines_high if padded else 0,
        line_size, _joined(places), _joined(row_places), _joined(row_outputs), _joined(outputs), elements, column,
    )  # fmt: skip


def _table(numbers: object) -> np.ndarray:
    table = np.array(numbers, np.int64)
    table.flags.writeable = False
    return table


def _joined(tables: list[np.ndarray]) -> np.ndarray:
    return _table(np.concatenate(tables) if tables else ())
