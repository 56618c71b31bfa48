"""What every rank of `test_helping` runs: products that a rank offers are computed by others, with the same bits."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import sys
import time
from unittest import mock

import numpy as np

import disttensor as keras
from disttensor import distributed
from disttensor.distributed import background, helping_pass, world
from disttensor.distributed.helping import OfferedWork, works
from disttensor.graph import passes
from disttensor.kernels import convolution, gemm, helping
from disttensor.kernels.native import sequence

comm = distributed.communicator()
P, RANK = comm.size, comm.rank
background.open_channel(world.data_group())
group = background._channel_of(world.data_group())._started
reducer = group.reducer


def in_turn(rank, function):
    """Let one rank do something while the others do nothing."""
    comm.barrier()
    if rank == RANK:
        function()
    comm.barrier()


def next_number():
    """Numbers belong to sums: make the one that the last offer was for."""
    background.start(comm.shared_empty((100,), "f4"), [(100, 1.0)]).wait()


class Products:
    """A product of matrices whose operand is packed, one whose is not, and the gradient of a convolution's kernel."""

    def __init__(self, rows=96):
        random = np.random.default_rng([rows, RANK])

        shapes = (600, 400), (40, 300), (3, 3, 16, 32)
        # Ranks' arrays need not lie in the same order.
        early = [comm.shared_empty(shape, np.float32) for shape in shapes[RANK % 3 :]]

        def operand(*shape):
            array = comm.shared_empty(shape, np.float32)
            array[...] = random.standard_normal(shape)
            return array

        self.operands = [
            operand(rows, 600), operand(rows, 500), operand(rows, 40), operand(rows, 300),
            operand(8, 12, 12, 16), operand(8, 12, 12, 32),
        ]  # fmt: skip
        self.results = [*(comm.shared_empty(shape, np.float32) for shape in shapes[: RANK % 3]), *early]
        self.want = [np.empty(shape, np.float32) for shape in shapes]
        for call in self.calls(self.want):
            call()
        self.offered = background.offered("", lambda: self.calls(self.results), self.results, self.operands)
        assert isinstance(self.offered, OfferedWork), self.offered
        self.offer, self.work = self.offered.work()
        self.help = self.offered.help()
        self.units = len(self.offered._tables.units)

    def calls(self, results):
        a, b, c, d, x, g = self.operands
        size = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
        return [
            gemm.bind(results[0], a.T, b[:, 100:]), gemm.bind(results[1], c.T, d),
            convolution.bind_convolve_kernel_gradient(results[2], x, g, **size),
        ]  # fmt: skip

    def begin(self):
        for result in self.results:
            result.fill(np.nan)
        self.offer()

    def check(self):
        for got, want in zip(self.results, self.want, strict=True):
            assert got.tobytes() == want.tobytes(), np.abs(got - want).max()
        next_number()


def take_a_unit_of_rank_1():
    """Rank 0 takes the first one, which its owner has not begun, and does not do it; the area of rank 1."""
    comm.barrier()
    area = (ctypes.c_int64 * 64).from_address(reducer.areas[1])
    if RANK == 0:
        area[helping.TAKEN] += 1
    comm.barrier()
    return area


def check_others_do_it_all():
    one = Products()
    for owner in range(P):
        one.begin()
        before = one.offered.helped
        if owner != RANK:
            one.work()
        for helper in [r for r in range(P) if r != owner]:
            in_turn(helper, one.help)
        in_turn(owner, one.work)
        helped = comm.all_gather_object(one.offered.helped - before)
        assert helped[owner] == 0, helped
        assert sum(helped) == one.units, (helped, one.units)
        one.check()


def check_all_at_once(rounds=50):
    """Ranks come at any time, and whoever is done helps."""
    one, random = Products(), np.random.default_rng(RANK)
    for _ in range(rounds):
        one.begin()
        if random.random() < 0.3:
            time.sleep(random.random() * 0.003)
        one.work()
        one.help()
        one.check()


def check_other_work_is_left_alone():
    """Also where nothing tells it but the length of the sums in a product."""
    one = Products(96 if RANK else 95)
    one.begin()
    if RANK == 0:
        one.work()
    in_turn(0, one.help)
    assert RANK or one.offered.helped == 0
    if RANK:
        one.work()
    one.check()


def check_who_helps_is_waited_for():
    """A rank that has taken a unit, and is held up: the owner waits for it, and offers nothing before."""
    one, flag = Products(), comm.shared_empty((1,), np.int64)
    flags = [
        reducer._bases[rank] + int(place) for rank, place in enumerate(comm.all_gather_object(reducer.offset(flag)))
    ]
    flag.fill(0)
    one.begin()
    area = take_a_unit_of_rank_1()
    if RANK == 0:
        time.sleep(0.1)
        ctypes.c_int64.from_address(flags[1]).value = 1
        area[helping.DONE] += 1
    one.work()
    assert RANK != 1 or flag[0] == 1
    comm.barrier()
    next_number()
    # An error has ended the step of rank 1 while another rank still has one of its units.
    one.begin()
    take_a_unit_of_rank_1()
    next_number()
    if RANK == 0:
        time.sleep(0.1)
        ctypes.c_int64.from_address(flags[1]).value = 2
        area[helping.DONE] += 1
    one.begin()
    assert RANK != 1 or flag[0] == 2
    one.work()
    one.check()


def check_a_signal_ends_the_offer():
    """While rank 1 waits for a unit that another has taken; nobody takes one of the others then."""
    one = Products()
    one.begin()
    area, before = take_a_unit_of_rank_1(), one.offered.helped
    if RANK == 1:
        signal = mock.patch.object(type(group), "go_on", mock.Mock(side_effect=KeyboardInterrupt))
        with signal, contextlib.suppress(KeyboardInterrupt):
            one.work()
            raise AssertionError("it did not wait")
    comm.barrier()
    if RANK == 0:
        area[helping.DONE] += 1
    if RANK != 1:
        one.work()
    in_turn(0, one.help)
    assert RANK or one.offered.helped == before
    next_number()
    one.begin()
    one.work()
    one.check()


def held_up(work):
    """An offer, and the work behind it, which each rank in its turn begins when somebody has helped, or after 1 s."""
    turns = itertools.count()

    def otherwise(self):
        offer, own = work(self)
        taken = ctypes.c_int64.from_address(reducer.areas[RANK] + 8 * helping.TAKEN)

        def wait():
            until, begin = time.monotonic() + 1, taken.value
            is_late = next(turns) % P == RANK
            while is_late and taken.value == begin and time.monotonic() < until:
                time.sleep(0)

        return sequence([offer, wait, own])

    return otherwise


def train(network, x, y):
    keras.utils.set_random_seed(3)
    model = network()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(x, y, 16 * P, epochs=2, verbose=0).history["loss"]
    names = [node.name for plan in model.train_function.plans for node, _ in plan.calls]
    helped = sum(comm.all_gather_object(sum(work.helped for work in works.values())))
    return [w.tobytes() for w in model.get_weights()], history, names.count("offered_products"), helped


def dense():
    layers = keras.layers
    return keras.Sequential([keras.Input((12,)), *(layers.Dense(320, "relu") for _ in range(4)), layers.Dense(5)])


def convolutions():
    layers = keras.layers
    pairs = [(layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(2)) for _ in range(2)]
    last = [layers.Conv2D(64, 2), layers.Flatten(), layers.Dense(5)]
    return keras.Sequential([keras.Input((18, 18, 3)), *sum(pairs, ()), *last])


def attention():
    """Kernels of several axes, whose gradients are products in another shape, of operands computed in place."""
    layers, x = keras.layers, keras.Input((6, 128))
    y = x
    for _ in range(2):
        y = layers.LayerNormalization()(y + layers.MultiHeadAttention(4, 32)(y, y))
        y = layers.LayerNormalization()(y + layers.Dense(128)(layers.Dense(256, "relu")(y)))
    return keras.Model(x, layers.Dense(5)(layers.GlobalAveragePooling1D()(y)))


def check_training():
    """No bit of a training depends on it."""
    random, work = np.random.default_rng(0), OfferedWork.work
    for network, shape in (dense, (12,)), (convolutions, (18, 18, 3)), (attention, (6, 128)):
        x = random.standard_normal((16 * P * 12 + 3, *shape)).astype(np.float32)  # the last batch is shorter
        y = np.arange(len(x)) % 5
        for slow in (False, True):
            OfferedWork.work = held_up(work) if slow else work
            *got, offers, helped = train(network, x, y)
            assert offers == 2, offers
            assert helped > 0 or not slow
            passes.LAST.remove(helping_pass.offer_products)
            *want, offers, _ = train(network, x, y)
            assert offers == 0, offers
            passes.LAST.insert(0, helping_pass.offer_products)
            assert got == want, network


assert int(sys.argv[1]) == P
check_others_do_it_all()
check_all_at_once()
check_other_work_is_left_alone()
check_who_helps_is_waited_for()
check_a_signal_ends_the_offer()
check_training()
if RANK == 0:
    print("every check passed")
