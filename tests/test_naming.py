"""Names for objects that were given none are Keras's."""

from __future__ import annotations

from typing import Any

import pytest

from disttensor import layers, losses, metrics, optimizers
from disttensor.naming import auto_name, reset_names, snake_case

NAMES = {name for module in (layers, losses, metrics, optimizers) for name in module.__all__ if name[0].isupper()}
NAMES |= {"ResNet50V2", "ABlock", "MyNet2Layer", "HTTPServer2D"}


@pytest.mark.keras_oracle
def test_snake_case_is_that_of_keras(keras: Any) -> None:
    keras.backend.clear_session()  # so that no name gets a number; it takes half a second
    theirs = {name: type(name, (keras.layers.Layer,), {})().name for name in sorted(NAMES)}
    assert {name: snake_case(name) for name in theirs} == theirs


def test_names_are_numbered() -> None:
    reset_names()
    assert [auto_name("Conv2D") for _ in range(3)] == ["conv2d", "conv2d_1", "conv2d_2"]
