"""Gated recurrent units over whole sequences in LLVM IR; see `disttensor.kernels.recurrent_ir`.

Gates are stored as update, reset, candidate; behind them, if the reset comes after the product, the candidate's part of
the product, with its bias.
"""

from __future__ import annotations

import functools

from disttensor.kernels.gemm_ir import Shape
from disttensor.kernels.ir import Function, Value
from disttensor.kernels.recurrent_ir import SequenceKernel
from disttensor.kernels.transcendental_ir import sigmoid, tanh


def gru(shape: Shape) -> Function:
    """The native kernel of `disttensor.kernels.recurrent.gru`."""
    s = SequenceKernel("gru", shape)
    f, weights, bias, products = s.f, s.pack(3), s.a["bias"], s.rows(3)
    with f.loop(0, s.steps) as step:
        s.multiply(products.matrix(), s.state(step), weights, s.units * 3, s.units)

        def advance(batch: Value, step: Value = step) -> None:
            gates, z, product = s.row("gates", 4, batch, step), s.row("z", 3, batch, step), products.row(batch)
            h, before = s.row("h", 1, batch, step), s.before("h", "h0", batch, step)

            def vector(place: Value) -> None:
                inner = [s.load(product, place, gate) + s.load(bias, place, gate) for gate in range(3)]
                update, reset = (sigmoid(f, s.load(z, place, gate) + inner[gate]) for gate in range(2))
                candidate = tanh(f, s.load(z, place, 2) + reset * inner[2])
                for gate, value in enumerate((update, reset, candidate, inner[2])):
                    s.store(value, gates, place, gate)
                s.store(_mix(s, update, s.load(before, place), candidate), h, place)

            s.each_vector(vector)

        s.each_live_row(step, advance, functools.partial(_stay, s, 4, step))
    return s.finish()


def gru_gradient(shape: Shape) -> Function:
    """The native kernel of `disttensor.kernels.recurrent.gru_gradient`."""
    s = SequenceKernel("gru_gradient", shape)
    f, one, weights, close = s.f, s.constant(1), s.pack(3, turned=True), s.rows(3)
    s.each_row(lambda batch: s.zero(s.row("dh", 1, batch), 1))
    with f.loop(0, s.steps) as done:
        step = s.steps - 1 - done

        def retreat(batch: Value, step: Value = step) -> None:
            gates, before = s.row("gates", 4, batch, step), s.before("h", "h0", batch, step)
            dz, da, dh = s.row("dz", 3, batch, step), s.row("da", 3, batch, step), s.row("dh", 1, batch)

            def vector(place: Value) -> None:
                update, reset, candidate, inner = (s.load(gates, place, gate) for gate in range(4))
                more = [s.gradient("gg", 4, batch, step, place, gate) for gate in range(4)]
                of_h = s.load(dh, place) + s.gradient("gh", 1, batch, step, place)
                of_update = of_h * (s.load(before, place) - candidate) + more[0]
                of_candidate = (of_h * (one - update) + more[2]) * (one - candidate * candidate)
                of_reset = of_candidate * inner + more[1]
                slopes = [of_update * update * (one - update), of_reset * reset * (one - reset)]
                for gate, value in enumerate(slopes):
                    s.store(value, dz, place, gate)
                s.store(of_candidate, dz, place, 2)
                for gate, value in enumerate((*slopes, of_candidate * reset + more[3])):
                    s.store(value, da, place, gate)
                    s.store(value, close.row(batch), place, gate)
                s.store(of_h * update, dh, place)

            s.each_vector(vector)

        def stay(batch: Value, step: Value = step) -> None:
            for row in (s.row("dz", 3, batch, step), s.row("da", 3, batch, step), close.row(batch)):
                s.zero(row, 3)
            s.keep_gradient("gh", s.row("dh", 1, batch), batch, step)

        s.each_live_row(step, retreat, stay)
        s.multiply(s.matrix("dh", 1), close.matrix(), weights, s.units, s.units * 3, 1)
    return s.finish()


def gru_before(shape: Shape) -> Function:
    """The native kernel of `disttensor.kernels.recurrent.gru_before`."""
    s = SequenceKernel("gru_before", shape)
    f = s.f
    of_gates, of_candidate = s.pack(3, count=2), s.pack(3, first=2, count=1)
    kept, products = s.rows(1), s.rows(2)
    s.each_row(lambda batch: s.zero(kept.row(batch), 1))
    with f.loop(0, s.steps) as step:
        s.multiply(products.matrix(), s.state(step), of_gates, s.units * 2, s.units)

        def reset(batch: Value, step: Value = step) -> None:
            gates, z = s.row("gates", 3, batch, step), s.row("z", 3, batch, step)
            before = s.before("h", "h0", batch, step)

            def vector(place: Value) -> None:
                update, reset = (
                    sigmoid(f, s.load(z, place, g) + s.load(products.row(batch), place, g)) for g in range(2)
                )
                s.store(update, gates, place, 0)
                s.store(reset, gates, place, 1)
                s.store(reset * s.load(before, place), kept.row(batch), place)

            s.each_vector(vector)

        s.each_live_row(step, reset, lambda batch: None)
        s.multiply(s.matrix("gates", 3, step, gate=2), kept.matrix(), of_candidate, s.units, s.units)

        def advance(batch: Value, step: Value = step) -> None:
            gates, z = s.row("gates", 3, batch, step), s.row("z", 3, batch, step)
            h, before = s.row("h", 1, batch, step), s.before("h", "h0", batch, step)

            def vector(place: Value) -> None:
                candidate = tanh(f, s.load(z, place, 2) + s.load(gates, place, 2))
                s.store(candidate, gates, place, 2)
                s.store(_mix(s, s.load(gates, place, 0), s.load(before, place), candidate), h, place)

            s.each_vector(vector)

        s.each_live_row(step, advance, functools.partial(_stay, s, 3, step))
    return s.finish()


def gru_before_gradient(shape: Shape) -> Function:
    """The native kernel of `disttensor.kernels.recurrent.gru_before_gradient`."""
    s = SequenceKernel("gru_before_gradient", shape)
    f, one = s.f, s.constant(1)
    of_gates, of_candidate = s.pack(3, count=2, turned=True), s.pack(3, first=2, count=1, turned=True)
    of_kept = s.rows(1)
    s.each_row(lambda batch: s.zero(s.row("dh", 1, batch), 1))
    with f.loop(0, s.steps) as done:
        step = s.steps - 1 - done

        def through_state(batch: Value, step: Value = step) -> None:
            gates, before = s.row("gates", 3, batch, step), s.before("h", "h0", batch, step)
            dz, dh = s.row("dz", 3, batch, step), s.row("dh", 1, batch)

            def vector(place: Value) -> None:
                update, candidate = s.load(gates, place, 0), s.load(gates, place, 2)
                more = [s.gradient("gg", 3, batch, step, place, gate) for gate in range(3)]
                of_h = s.load(dh, place) + s.gradient("gh", 1, batch, step, place)
                of_update = of_h * (s.load(before, place) - candidate) + more[0]
                s.store(of_update * update * (one - update), dz, place, 0)
                s.store(more[1], dz, place, 1)
                s.store((of_h * (one - update) + more[2]) * (one - candidate * candidate), dz, place, 2)
                s.store(of_h * update, dh, place)

            s.each_vector(vector)

        def stay(batch: Value, step: Value = step) -> None:
            s.zero(s.row("dz", 3, batch, step), 3)
            s.keep_gradient("gh", s.row("dh", 1, batch), batch, step)

        s.each_live_row(step, through_state, stay)
        s.multiply(of_kept.matrix(), s.matrix("dz", 3, step, gate=2), of_candidate, s.units, s.units)

        def through_reset(batch: Value, step: Value = step) -> None:
            gates, before = s.row("gates", 3, batch, step), s.before("h", "h0", batch, step)
            dz, dh, of_product = s.row("dz", 3, batch, step), s.row("dh", 1, batch), of_kept.row(batch)

            def vector(place: Value) -> None:
                reset, slope = s.load(gates, place, 1), s.load(of_product, place)
                of_reset = s.load(dz, place, 1) + slope * s.load(before, place)
                s.store(of_reset * reset * (one - reset), dz, place, 1)
                s.store(s.load(dh, place) + slope * reset, dh, place)

            s.each_vector(vector)

        s.each_live_row(step, through_reset, lambda batch: None)
        s.multiply(s.matrix("dh", 1), s.matrix("dz", 3, step), of_gates, s.units, s.units * 2, 1)
    return s.finish()


def _mix(s: SequenceKernel, share: Value, old: Value, new: Value) -> Value:
    return share * old + (s.constant(1) - share) * new


def _stay(s: SequenceKernel, features: int, step: Value, batch: Value) -> None:
    s.zero(s.row("gates", features, batch, step), features)
    s.copy(s.before("h", "h0", batch, step), s.row("h", 1, batch, step))
