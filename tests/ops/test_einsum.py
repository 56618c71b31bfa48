"""einsum against numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttensor import ops
from disttensor.autodiff import GradientTape
from disttensor.context import state
from disttensor.errors import ArgumentError, ShapeError
from disttensor.tensor import Tensor

SIZES = {"i": 2, "j": 3, "k": 4, "l": 5, "b": 1}


def operands_for(rng: np.random.Generator, subscripts: str) -> list[np.ndarray]:
    terms = subscripts.replace(" ", "").split("->")[0].split(",")
    shapes = [[SIZES[c] for c in t.replace("...", "bk" if t.startswith("...") else "k")] for t in terms]
    return [rng.normal(size=s) for s in shapes]


@pytest.mark.parametrize(
    "subscripts",
    [
        "ij,jk->ik", "ij,jk", "ij , jk -> ki", "i,i->i", "i,i", "i,j->ij", "i,j->ji", "ij->", "ij->ji", "ji", "ij->j",
        "ii->i", "ii", "iij->j", "iii->i", "ijk,ikl->ijl", "ijk,jkl->il", "ijk,kl->ijl", "ijkl,ijkl->ij", "ij,ik->jk",
        "ij,jk,kl->il", "i,j,ij->", "ij,ij,ij->i", "ijk,ilk,il->j", "i,j,k,l->lkji", "...ij,...jl->...il",
        "...i,i->...", "i...,i->...", "...,...->...", "...ij", "...ii->...i", "ij,kl->ik", ",i->i", ",",
        "ijb,bkl->ijkl", "ij,k->i",
    ],
)  # fmt: skip
def test_agrees_with_numpy(rng: np.random.Generator, subscripts: str) -> None:
    operands = operands_for(rng, subscripts)
    expected = np.einsum(subscripts, *operands)
    actual = ops.einsum(subscripts, *operands)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.array, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=150)
@given(st.data())
def test_random_subscripts_agree_with_numpy(data: st.DataObject) -> None:
    letters = st.text("ijkl", max_size=3)
    terms = data.draw(st.lists(letters, min_size=1, max_size=4))
    output = data.draw(st.lists(st.sampled_from(sorted({*"".join(terms)})), unique=True)) if any(terms) else []
    subscripts = ",".join(terms) + "->" + "".join(output)
    operands = operands_for(np.random.default_rng(0), subscripts)
    np.testing.assert_allclose(ops.einsum(subscripts, *operands), np.einsum(subscripts, *operands), atol=1e-12)


@pytest.mark.parametrize(("x", "y"), [((1, 3), (3, 2)), ((4, 1), (3, 2)), ((4, 3), (1, 2))])
def test_axes_of_size_one_are_broadcast(rng: np.random.Generator, x: Any, y: Any) -> None:
    a, b = rng.normal(size=x), rng.normal(size=y)
    np.testing.assert_allclose(ops.einsum("ij,jk->ik", a, b), np.einsum("ij,jk->ik", a, b))
    a, b = rng.normal(size=(5, 1, 2, 3)), rng.normal(size=(4, 3, 2))
    np.testing.assert_allclose(ops.einsum("...ij,...jk->...ik", a, b), a @ b)


def test_attention_copies_nothing() -> None:
    x = Tensor.wrap(np.ones((2, 5, 3, 4), np.float32))
    seen: list[str] = []

    class Names:
        def record(self, op: Any, *rest: Any) -> None:
            seen.append(op.name)

    state.recorders = (Names(),)  # type: ignore[assignment]
    try:
        ops.einsum("bqhd,bkhd->bhqk", x, x)
    finally:
        state.recorders = ()
    assert seen == ["permute", "permute", "matrix_product"]


@pytest.mark.parametrize("subscripts", ["ij,jk->ik", "iij->j", "i,j,ij->", "ij,ij->i", "...ij,jl->...il", "ijk,k->"])
def test_gradient_is_the_einsum_with_the_result_in_its_place(rng: np.random.Generator, subscripts: str) -> None:
    tensors = [Tensor.wrap(o) for o in operands_for(rng, subscripts)]
    with GradientTape() as tape:
        tape.watch(tensors)
        result = ops.einsum(subscripts, *tensors)
    weights = rng.normal(size=result.shape)
    gradients = tape.gradient(result, tensors, Tensor.wrap(weights))
    for n, gradient in enumerate(gradients):
        direction = rng.normal(size=tensors[n].shape)
        moved = [direction if m == n else t.array for m, t in enumerate(tensors)]
        # einsum is linear in each operand.
        assert np.sum(gradient.array * direction) == pytest.approx(np.sum(weights * np.einsum(subscripts, *moved)))


@pytest.mark.parametrize(
    ("subscripts", "shapes", "error", "message"),
    [
        ("ij,jk->ik", [(2, 3)], ArgumentError, "is for 2 operands, got 1"),
        ("ij,jk->ik", [(2, 3), (4, 5)], ShapeError, "'j' .* sizes 3 and 4"),
        ("...i,...i", [(2, 3), (4, 3)], ShapeError, r"'\.\.\.' .* sizes 2 and 4"),
        ("ijk", [(2, 3)], ShapeError, r"'ijk' .* 2 axes of shape \(2, 3\)"),
        ("i", [(2, 3)], ShapeError, "'i' .* 2 axes"),
        ("ij->ik", [(2, 3)], ArgumentError, "must occur in an operand"),
        ("ij->ii", [(2, 3)], ArgumentError, "once only"),
        ("...i->i", [(2, 3)], ArgumentError, "must have one too"),
        ("i1->i", [(2, 3)], ArgumentError, "may hold letters"),
        ("ij->i->j", [(2, 3)], ArgumentError, "may hold letters"),
        ("......", [(2, 3)], ArgumentError, "may hold letters"),
    ],
)
def test_refuses(subscripts: str, shapes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.einsum(subscripts, *[np.zeros(s) for s in shapes])
