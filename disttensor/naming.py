"""Names for objects that were given none."""

from __future__ import annotations

import re
from collections import Counter

_counts: Counter[str] = Counter()


def snake_case(name: str) -> str:
    """A class name in lower case with underscores, none of them before the D of dimensions, as Keras has it.

    Examples
    --------
    >>> snake_case("TruePositives"), snake_case("AUC"), snake_case("Conv2DTranspose")
    ('true_positives', 'auc', 'conv2d_transpose')
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", name).lower()


def auto_name(prefix: str) -> str:
    """The prefix in snake case with a number: ``dense``, ``dense_1``, ``dense_2``, … for the class Dense."""
    prefix = snake_case(prefix)
    count = _counts[prefix]
    _counts[prefix] += 1
    return f"{prefix}_{count}" if count else prefix


def reset_names() -> None:
    """Start the numbers of automatic names again."""
    _counts.clear()
