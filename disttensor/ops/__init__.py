"""Operators: every function works on eager tensors, in traced functions and on the symbols of functional models.

A family of operators is a module that lists its public names in ``__all__``; adding an operator touches that module
alone.
"""

from __future__ import annotations

import sys

from disttensor.operable import bind_operators
from disttensor.ops.activations import *
from disttensor.ops.arithmetic import *
from disttensor.ops.attention import *
from disttensor.ops.complex_numbers import *
from disttensor.ops.convolution import *
from disttensor.ops.core import *
from disttensor.ops.creation import *
from disttensor.ops.crossentropy import *
from disttensor.ops.cumulative import *
from disttensor.ops.depthwise import *
from disttensor.ops.einsum import *
from disttensor.ops.exponential import *
from disttensor.ops.indexing import *
from disttensor.ops.joining import *
from disttensor.ops.linalg import *
from disttensor.ops.logic import *
from disttensor.ops.nn import *
from disttensor.ops.normalization import *
from disttensor.ops.padding import *
from disttensor.ops.piecewise import *
from disttensor.ops.pooling import *
from disttensor.ops.random import *
from disttensor.ops.recurrent import *
from disttensor.ops.reductions import *
from disttensor.ops.rounding import *
from disttensor.ops.scatter import *
from disttensor.ops.shape import *
from disttensor.ops.sorting import *
from disttensor.ops.statistics import *
from disttensor.ops.trigonometric import *
from disttensor.tensor import convert_to_tensor, is_tensor

bind_operators(sys.modules[__name__])
