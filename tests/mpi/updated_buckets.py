"""Buckets whose sums update weights, and what should come out: for `updating_sums_program`, on every rank."""

from __future__ import annotations

import numpy as np

import disttensor as dt
from disttensor import distributed, dtypes
from disttensor.distributed import background, buckets, native_sum, single_copy, world
from disttensor.distributed.updates import Update
from disttensor.kernels import machine, meeting
from disttensor.kernels.native import NativeCall

comm = distributed.communicator()
P, RANK = comm.size, comm.rank
background.open_channel(world.data_group())
group = background._channel_of(world.data_group())._started
ledger = group.reducer.ledger

EQUAL = [1.0] * P
UNEQUAL = [0.25 * (1 + r) for r in range(P)]

LOADS = {
    "float32": "%g = load float, ptr %g.at",
    "bfloat16": "%half = load i16, ptr %g.at\n%wide = zext i16 %half to i32\n%bits = shl i32 %wide, 16\n"
    "%g = bitcast i32 %bits to float",
}
# m ← m / 2 + g, w ← w − rate·m; the arguments are the gradient, w, m and the rate.
UPDATE = """
define void @update(ptr %arguments, i64 %start, i64 %stop) {{
entry:
  %p1 = getelementptr ptr, ptr %arguments, i64 1
  %p2 = getelementptr ptr, ptr %arguments, i64 2
  %p3 = getelementptr ptr, ptr %arguments, i64 3
  %gradient = load ptr, ptr %arguments
  %w = load ptr, ptr %p1
  %m = load ptr, ptr %p2
  %rate.at = load ptr, ptr %p3
  %rate = load float, ptr %rate.at
  %some = icmp slt i64 %start, %stop
  br i1 %some, label %each, label %end
each:
  %i = phi i64 [%start, %entry], [%next, %each]
  %g.at = getelementptr {kind}, ptr %gradient, i64 %i
  {load}
  %w.at = getelementptr float, ptr %w, i64 %i
  %m.at = getelementptr float, ptr %m, i64 %i
  %m0 = load float, ptr %m.at
  %m1 = fmul float %m0, 0.5
  %m2 = fadd float %m1, %g
  store float %m2, ptr %m.at
  %w0 = load float, ptr %w.at
  %change = fmul float %rate, %m2
  %w1 = fsub float %w0, %change
  store float %w1, ptr %w.at
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %stop
  br i1 %more, label %each, label %end
end:
  ret void
}}
"""


class Weights:
    """A variable and its momentum, and what they should be."""

    def __init__(self, size):
        start = np.linspace(-1, 1, size, dtype="f4")
        self.both = [dt.Variable(start), dt.Variable(np.zeros_like(start))]
        self.wanted = [start, np.zeros_like(start)]

    @property
    def copies(self):
        return tuple(variable.single_copy for variable in self.both)

    def update(self, gradient, rate):
        w, m = self.wanted
        m = m * np.float32(0.5) + gradient
        self.wanted = [w - rate * m, m]

    def check(self):
        for variable, want in zip(self.both, self.wanted, strict=True):
            assert variable.memory.tobytes() == want.tobytes(), np.flatnonzero(variable.memory != want)[[0, -1]]


class Bucket:
    """Gradients of some weights, and between them numbers that nobody updates by: how many, or whose gradient."""

    def __init__(self, members, dtype="float32", also=()):
        self.members, self.dtype, numpy_dtype = members, dtype, dtypes.to_numpy(dtype)
        self.sizes = [m if isinstance(m, int) else m.wanted[0].size for m in members]
        self.starts, self.size = buckets.layout([(size,) for size in self.sizes], dtype)
        self.array = comm.shared_empty((self.size,), numpy_dtype)
        self.array[...] = 0
        self.rate, self.weight = np.zeros((), "f4"), np.zeros(())
        self.cut = self.starts[len(members) // 2]
        updates, calls = [], []
        kernel = machine.load(UPDATE.format(kind="i16" if dtype == "bfloat16" else "float", load=LOADS[dtype]))
        for member, start, size in zip(members, self.starts, self.sizes, strict=True):
            if not isinstance(member, int):
                w, m = (variable.memory for variable in member.both)
                words = (self.array[start : start + size], w, m, self.rate)
                calls.append(NativeCall(kernel["update"], words, size, 1 << 12))
                updates.append(Update(start, calls[-1], (*member.copies, *also)))
        runs, weights = [self.cut, self.size - self.cut], [self.weight, np.ones((), "f4")]
        self.sum = native_sum.make(group, self.array, runs, weights, updates)
        self.start, self.wait = self.sum.start(), self.sum.wait()
        self.update = self.sum.unless_updated(calls)

    def data(self, rank, number):
        generator = np.random.default_rng([rank, number])
        return [generator.standard_normal(size).astype(dtypes.to_numpy(self.dtype)) for size in self.sizes]

    def fill(self, number, weights):
        for start, values in zip(self.starts, self.data(RANK, number), strict=True):
            self.array[start : start + values.size] = values
        self.weight[...], self.rate[...] = weights[RANK], 0.01 * number

    @property
    def has_updated(self):
        return self.sum._sum._words[meeting.UPDATED] != 0

    def check(self, number, weights):
        parts = [self.data(r, number) for r in range(P)]
        for i, (member, start, size) in enumerate(zip(self.members, self.starts, self.sizes, strict=True)):
            total = np.zeros(size, "f4")
            for part, weight in zip(parts, weights if start < self.cut else EQUAL, strict=True):
                if weight:
                    product = part[i].astype("f4") * np.float32(weight)
                    total += product.astype(part[i].dtype).astype("f4")
            total = total.astype(self.array.dtype)
            if isinstance(member, int):
                assert self.array[start : start + size].tobytes() == total.tobytes(), (i, number)
            else:
                member.update(total.astype("f4"), np.float32(0.01 * number))
                member.check()

    def step(self, number, weights=UNEQUAL):
        self.fill(number, weights)
        self.start()
        self.wait()
        self.update()
        self.check(number, weights)


def share(*weights):
    single_copy.share([variable for one in weights for variable in one.both])
    assert all(copy.is_shared for one in weights for copy in one.copies)


def some(dtype="float32"):
    """Members of odd lengths, which parts cut where they like, and pieces, too."""
    weights = [Weights(20_001), Weights(70_003), Weights(16_385)]
    return weights, Bucket([3, weights[0], 130, weights[1], weights[2], 1], dtype)
