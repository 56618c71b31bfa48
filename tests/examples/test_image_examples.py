"""The image examples learn; `tests/mpi/test_image_examples.py` runs them on four processes."""

from __future__ import annotations

import pytest

from tests.examples.test_examples import last_value, run


def test_resnet_learns_the_digits() -> None:
    output = run("resnet_images.py", "--epochs", "3", "--filters", "8")
    assert last_value(output, "test_accuracy") > 0.9


def test_autoencoder_draws_the_digits_again() -> None:
    output = run("autoencoder.py", "--epochs", "3")
    assert last_value(output, "test_loss") < 0.42
    assert "@" in output, "no picture of the digits"


def test_resnet_refuses_what_it_does_not_know() -> None:
    with pytest.raises(AssertionError, match="invalid choice"):
        run("resnet_images.py", "--dataset", "imagenet")
