"""`Tensor`, `Variable` and `KerasTensor`.

A `Tensor` is a value: it never changes. It holds a numpy array (*eager*), or stands for a value of the graph that is
being traced (*symbolic*); the class and its methods are the same, and shape and dtype are known in both. A
`Variable` is a place: its memory stays where it is while it lives, and `assign` writes into it. A `KerasTensor` is
neither: it is a shape (some dimensions unknown) and a dtype in a functional model that is being put together.
"""

from disttensor.tensor.keras_tensor import KerasTensor, bind_symbolic_call, is_tensor
from disttensor.tensor.tensor import Tensor, aligned_empty, constant, convert_to_tensor
from disttensor.tensor.variable import Variable

__all__ = [
    "KerasTensor",
    "Tensor",
    "Variable",
    "aligned_empty",
    "bind_symbolic_call",
    "constant",
    "convert_to_tensor",
    "is_tensor",
]
