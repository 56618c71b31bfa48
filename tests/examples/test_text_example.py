"""The text example learns more than pairs of characters; `tests/mpi/test_text_example.py` runs it on four processes."""

from __future__ import annotations

import re

from tests.examples.test_examples import last_value, run

SMALL = ("--width", "32", "--length", "32", "--learning-rate", "0.01")


def test_transformer_learns_more_than_pairs() -> None:
    output = run("transformer_text.py", *SMALL, "--characters", "100000", "--epochs", "3")
    of_pairs = re.search(r"loss of (\S+)", output)
    assert of_pairs is not None
    assert last_value(output, "test_loss") < float(of_pairs[1]) - 0.15
