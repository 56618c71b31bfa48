"""Names for objects that were given none are Keras's."""

from __future__ import annotations

from typing import Any

import pytest

from disttensor import layers, losses, metrics, optimizers
from disttensor.naming import auto_name, reset_names, snake_case

CLASSES = sorted(
    name
    for module in (layers, losses, metrics, optimizers)
    for name in module.__all__
    if isinstance(getattr(module, name), type)
)


@pytest.mark.keras_oracle
@pytest.mark.parametrize("name", [*CLASSES, "ResNet50V2", "ABlock", "MyNet2Layer", "HTTPServer2D"])
def test_snake_case_is_that_of_keras(keras: Any, name: str) -> None:
    reset_names()
    keras.backend.clear_session()
    theirs = type(name, (keras.layers.Layer,), {})()
    assert snake_case(name) == theirs.name


def test_names_are_numbered() -> None:
    reset_names()
    assert [auto_name("Conv2D") for _ in range(3)] == ["conv2d", "conv2d_1", "conv2d_2"]
