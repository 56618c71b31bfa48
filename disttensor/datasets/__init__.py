"""Ready data sets, as numpy arrays: `digits` comes along; `mnist`, `fashion_mnist` and `cifar10` are read from files.

Files are looked for in the folder ``$DISTTENSOR_DATASETS``, or ``~/.cache/disttensor/datasets``. What is not there is
downloaded into it, once per machine, and checked against a known SHA-256.
"""

from disttensor.datasets import cifar10, digits, fashion_mnist, mnist

__all__ = ["cifar10", "digits", "fashion_mnist", "mnist"]
