"""The registry: what an operator is, and how one is declared.

Every operator is declared in one place, in two shapes. An elementwise operator is a scalar formula::

    @elementwise("float")
    def tanh(m, x):
        "Hyperbolic tangent."
        return m.tanh(x)

    @tanh.gradient
    def _(ctx, g):
        return g * (1 - ctx.output * ctx.output)

any other is a kernel that fills a preallocated array, with a rule for the shape and dtype of that array::

    @operator(examples=[Example((2, 3), axes=(1, 0))])
    def permute(out, x, *, axes):
        np.copyto(out, np.transpose(x, axes))

    @permute.infer
    def _(x, *, axes):
        return Spec(tuple(x.shape[a] for a in axes), x.dtype)

Gradients are written in terms of operators, so that they can be traced, optimised and differentiated again. The
gradient of an operator on complex numbers is g·conj(∂f/∂x), the direction of steepest ascent of a real loss, as in
TensorFlow and PyTorch.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from disttensor import dtypes
from disttensor.context import Shape, Spec, state
from disttensor.errors import DTypeError, ShapeError, TracingError
from disttensor.kernels import denormals
from disttensor.kernels.loop import Loop
from disttensor.kernels.native import Bound
from disttensor.ops import formula as formulas
from disttensor.tensor import KerasTensor, Tensor, Variable, convert_to_tensor, keras_tensor

OPERATORS: dict[str, Operator] = {}
"""Every operator by name."""

HALF = ("float16", "bfloat16")
"""dtypes whose arithmetic runs in float32, rounded once at the end of the operator."""


class Example:
    """Inputs and attributes for which the registry-wide test runs an operator.

    Parameters
    ----------
    *inputs : tuple of int or numpy array
        A shape, to be filled with random numbers, or a given array (indices, masks).
    **attrs
        The operator's attributes.
    """

    def __init__(self, *inputs: tuple[int, ...] | np.ndarray, **attrs: Any):
        self.inputs = inputs
        self.attrs = attrs

    def __repr__(self) -> str:
        inputs = [str(i if isinstance(i, tuple) else i.shape) for i in self.inputs]
        return ", ".join(inputs + [f"{k}={v}" for k, v in self.attrs.items()])


class Context(NamedTuple):
    """What a gradient function may use: the operator's inputs, outputs and attributes."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    attrs: dict[str, Any]

    @property
    def output(self) -> Tensor:
        """The only output."""
        return self.outputs[0]


@dataclass(eq=False)
class Operator:
    """One operator: its name, documentation, rules, kernel and gradient.

    Attributes
    ----------
    name : str
    kernel : callable
        ``kernel(out, *arrays, **attrs)`` fills the preallocated `out` (a tuple of arrays if there are several).
    infer_rule : callable
        ``infer_rule(*specs, **attrs)`` gives the `Spec` of the result, or a tuple of them, or raises `ShapeError`.
    gradient_rule : callable or None
        ``gradient_rule(ctx, *output_gradients)`` gives one gradient (or None) for each input; None if the operator
        is not differentiable.
    view_rule : callable or None
        ``view_rule(*arrays, **attrs)`` gives the result as a view of an input, or None where that cannot be.
    bind_rule : callable or None
        ``bind_rule(out, *arrays, **attrs)`` prepares a call of the kernel on fixed arrays: a native one if there is
        (see `disttensor.kernels.native`), else any callable without arguments. Default: a partial call.
    loop_rule : callable or None
        Of an operator that is not elementwise: ``loop_rule(*specs, **attrs)`` gives the generated loop that computes
        it with the same bits (a `kernels.loop.Loop`), the shape of the tensor over whose elements it runs, the length
        of a row and, if columns are not reduced over all rows, over how many; None where there is no such loop. Fusion
        joins it with its neighbours.
    program : callable or None
        Of an elementwise operator: ``program(items of attrs)`` gives its formula as a `formula.Program`.
    rule : str or None
        The dtype rule of an elementwise operator, see `elementwise`.
    examples : sequence of Example
    domain : tuple of (float, float)
        Where random inputs of tests may lie, one interval for each input (the last is repeated).
    dtypes : tuple of str
        For which kinds of dtypes it is defined: "float", "complex", "int", "bool".
    refuses_rule : callable or None
        ``refuses_rule(*specs, **attrs)`` gives a pair for each input whose values the kernel may refuse by raising: its
        number, and the size of the axis that it points into.
    communicates : bool
        Whether ranks exchange data in it; such an operator is never folded.
    waits : bool
        Whether it waits for what others do meanwhile. From the first such operator on, what a program does may as well
        be done while it runs again (see `disttensor.graph.rotation`).
    in_place : bool
        Whether a plan gives the result the memory of the first input, which nothing may read afterwards.
    overwrites : tuple of (int, int)
        Results, and for each an operand whose memory it may take over in a plan if nothing else reads that: of each
        place the kernel, or what is bound, reads the operand before it writes the result, and not afterwards.
    into_variables : bool
        Whether a plan may have the results computed in the memory of variables that they update, if nothing reads the
        old values later or in the operator itself. (Elementwise operators do so without being told.)
    allocate_rule : callable or None
        ``allocate_rule(spec)`` gives the memory in which a plan puts the result; None: in its arena.
    allocate_operands_rule : callable or None
        ``allocate_operands_rule(spec)`` gives the memory in which a plan puts what other operators compute for this
        one; None: in its arena.
    changes_rule : callable or None
        ``changes_rule(*specs, **attrs)`` gives the numbers of those inputs whose memory, a variable's, it may write to.
    destinations_rule : callable or None
        ``destinations_rule(out, *specs, **attrs)`` gives for each input the part of the result in which a plan may have
        it computed, or None.
    """

    name: str
    kernel: Callable[..., None]
    doc: str
    infer_rule: Callable[..., Any]
    gradient_rule: Callable[..., Any] | None = None
    view_rule: Callable[..., Any] | None = None
    bind_rule: Callable[..., Bound] | None = None
    loop_rule: Callable[..., tuple[Loop, Shape, int] | tuple[Loop, Shape, int, int] | None] | None = None
    refuses_rule: Callable[..., Sequence[tuple[int, int]]] | None = None
    program: Callable[..., formulas.Program] | None = None
    rule: str | None = None
    signature: inspect.Signature = field(default_factory=inspect.Signature)
    examples: Sequence[Example] = ()
    domain: tuple[tuple[float, float], ...] = ((-2.0, 2.0),)
    dtypes: tuple[str, ...] = ("float",)
    communicates: bool = False
    waits: bool = False
    in_place: bool = False
    overwrites: tuple[tuple[int, int], ...] = ()
    into_variables: bool = False
    allocate_rule: Callable[[Spec], np.ndarray] | None = None
    allocate_operands_rule: Callable[[Spec], np.ndarray] | None = None
    destinations_rule: Callable[..., Sequence[np.ndarray | None]] | None = None
    changes_rule: Callable[..., Sequence[int]] | None = None

    def __post_init__(self) -> None:
        if self.name in OPERATORS:
            raise ValueError(f"an operator named {self.name!r} exists already.")
        OPERATORS[self.name] = self
        self.__name__ = self.name
        self.__doc__ = self.doc
        self.__signature__ = self.signature

    def infer(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: the shape and dtype rule."""
        self.infer_rule = rule
        return rule

    def gradient(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: the gradient."""
        self.gradient_rule = rule
        return rule

    def view(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: how to get the result without a copy."""
        self.view_rule = rule
        return rule

    def bind(self, rule: Callable[..., Bound]) -> Callable[..., Bound]:
        """Decorator: how to prepare a call on fixed arrays."""
        self.bind_rule = rule
        return rule

    def allocate(self, rule: Callable[[Spec], np.ndarray]) -> Callable[[Spec], np.ndarray]:
        """Decorator: where a plan puts the result."""
        self.allocate_rule = rule
        return rule

    def allocate_operands(self, rule: Callable[[Spec], np.ndarray]) -> Callable[[Spec], np.ndarray]:
        """Decorator: the memory for its operands in a plan."""
        self.allocate_operands_rule = rule
        return rule

    def destinations(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: which parts of the result are the inputs, unchanged."""
        self.destinations_rule = rule
        return rule

    def changes(self, rule: Callable[..., Sequence[int]]) -> Callable[..., Sequence[int]]:
        """Decorator: which inputs it may write to."""
        self.changes_rule = rule
        return rule

    def refuses(self, rule: Callable[..., Sequence[tuple[int, int]]]) -> Callable[..., Sequence[tuple[int, int]]]:
        """Decorator: which inputs hold indices that must be in range."""
        self.refuses_rule = rule
        return rule

    def loop(self, rule: Callable[..., tuple[Loop, tuple[int, ...], int] | None]) -> Callable[..., Any]:
        """Decorator: the generated loop that computes it."""
        self.loop_rule = rule
        return rule

    @functools.cached_property
    def arity(self) -> int:
        """How many inputs, if the number is fixed (elementwise operators)."""
        return sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in self.signature.parameters.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Apply to tensors, arrays and numbers (the dtypes of elementwise operands are promoted first)."""
        if any(type(a) is KerasTensor for a in args) or any(type(a) is KerasTensor for a in kwargs.values()):
            return keras_tensor.symbolic_call(self, args, kwargs)
        if self.rule is None:
            return apply(self, [convert_to_tensor(a) for a in args], kwargs)
        if not kwargs and len(args) == self.arity == len(self.signature.parameters):  # nothing to match
            return apply(self, _DTYPE_RULES[self.rule](list(args)), {})
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = list(bound.args)[: self.arity]
        return apply(self, _DTYPE_RULES[self.rule](values), bound.kwargs)

    def __repr__(self) -> str:
        return f"<operator {self.name}>"


def operator(
    *,
    examples: Sequence[Example] = (),
    domain: tuple[tuple[float, float], ...] = ((-2.0, 2.0),),
    kinds: tuple[str, ...] = ("float",),
    communicates: bool = False,
    waits: bool = False,
    in_place: bool = False,
    overwrites: tuple[tuple[int, int], ...] = (),
    into_variables: bool = False,
) -> Callable[[Callable[..., None]], Operator]:
    """Declare an operator by its kernel; add rules with ``@name.infer``, ``@name.gradient`` and ``@name.view``."""

    def declare(kernel: Callable[..., None]) -> Operator:
        def missing(*specs: Spec, **attrs: Any) -> Spec:
            raise TypeError(f"operator {kernel.__name__} has no shape rule.")

        parameters = list(inspect.signature(kernel).parameters.values())[1:]
        return Operator(
            kernel.__name__, kernel, inspect.getdoc(kernel) or "", missing, signature=inspect.Signature(parameters),
            examples=examples, domain=domain, dtypes=kinds, communicates=communicates, waits=waits,
            in_place=in_place, overwrites=overwrites, into_variables=into_variables,
        )  # fmt: skip

    return declare


def elementwise(
    rule: str,
    *,
    domain: tuple[tuple[float, float], ...] = ((-2.0, 2.0),),
    kinds: tuple[str, ...] = ("float",),
    examples: Sequence[Example] = (),
) -> Callable[[Callable[..., Any]], Operator]:
    """Declare an elementwise operator by its scalar formula.

    Parameters
    ----------
    rule : str
        How the dtype of the result follows from the operands', which are cast to one dtype first:

        * "promote": the promoted dtype (add);
        * "float": promoted, integers and booleans become `config.floatx` (exp, divide);
        * "compare": compared in the promoted dtype, result bool (less);
        * "logical": operands and result bool (logical_and);
        * "test": result bool (isnan);
        * "real": promoted, a complex operand gives its real dtype (absolute, imag);
        * "select": the first operand is bool, the others are promoted (where).
    domain : tuple of (float, float)
        Intervals for the random inputs of tests.
    kinds : tuple of str
        The kinds of dtypes ("float", "complex", "int", "bool") for which it is defined, after promotion; any other is a
        `DTypeError`.
    """

    def declare(function: Callable[..., Any]) -> Operator:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        signature = inspect.Signature(parameters)
        arity = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)

        @functools.cache
        def program(attrs: tuple[tuple[str, Any], ...]) -> formulas.Program:
            return formulas.trace(function, arity, **dict(attrs))

        def kernel(out: np.ndarray, *inputs: np.ndarray, **attrs: Any) -> None:
            run = program(tuple(attrs.items())).run
            if any(i.dtype.itemsize == 2 and dtypes.standardize_dtype(i.dtype) in HALF for i in inputs):
                wide = [i.astype(np.float32) if i.dtype != bool else i for i in inputs]
                result = out if out.dtype == bool else np.empty(out.shape, np.float32)
                run(result, *wide)
                if result is not out:
                    np.copyto(out, result, casting="unsafe")
            else:
                run(out, *inputs)

        def bind(out: np.ndarray, *inputs: np.ndarray, **attrs: Any) -> Bound:
            formula = program(tuple(attrs.items()))
            if all(i.dtype.itemsize != 2 and i.dtype.kind != "c" for i in inputs):
                ufunc, call = formula.as_ufunc(), formula.bind(out, *inputs)
                if call is not None:
                    return call
                if ufunc is not None:
                    return functools.partial(ufunc, *inputs, out=out)
            return functools.partial(kernel, out, *inputs, **attrs)

        def infer(*specs: Spec, **attrs: Any) -> Spec:
            _check_kind(function.__name__, specs[-1].dtype, kinds)
            return Spec(broadcast_shapes(function.__name__, [s.shape for s in specs]), _result_dtype(rule, specs))

        return Operator(
            function.__name__, kernel, inspect.getdoc(function) or "", infer, bind_rule=bind, program=program,
            rule=rule, signature=signature, examples=examples, domain=domain, dtypes=kinds,
        )  # fmt: skip

    return declare


def broadcast_shapes(name: str, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that these shapes broadcast to by numpy's rule; a ShapeError that names the operator if they do not."""
    first = shapes[0]
    if all(shape == first for shape in shapes):
        return first
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        listed = " and ".join(str(s) for s in shapes)
        raise ShapeError(
            f"{name}: shapes {listed} do not broadcast; counted from the last axis, sizes must be equal or 1."
        ) from None


def _check_kind(name: str, dtype: str, kinds: tuple[str, ...]) -> None:
    if dtypes.kind(dtype) not in kinds:
        raise DTypeError(
            f"{name} is not defined for dtype {dtype}, only for kinds {', '.join(kinds)}; convert with ops.cast first."
        )


def _result_dtype(rule: str, specs: Sequence[Spec]) -> str:
    if rule in ("compare", "logical", "test"):
        return "bool"
    dtype = specs[-1].dtype
    return dtypes.real_part(dtype) if rule == "real" else dtype


def common_dtype(values: Sequence[Any], *, floating: bool = False) -> str:
    """The promoted dtype of tensors, arrays and (weakly typed) Python numbers."""
    kinds = [type(v) if type(v) in (bool, int, float, complex) else _dtype_of(v) for v in values]
    if floating:
        kinds.append(float)
    return dtypes.result_type(*kinds)


def _dtype_of(value: Any) -> str:
    return value.dtype if isinstance(value, (Tensor, Variable, KerasTensor)) else convert_to_tensor(value).dtype


def promote(values: Sequence[Any], *, floating: bool = False) -> list[Tensor]:
    """Convert operands to tensors of their common dtype."""
    alike = bool(values) and all(type(v) is Tensor and v.dtype == values[0].dtype for v in values)
    if alike and (not floating or dtypes.is_inexact(values[0].dtype)):
        return list(values)  # nothing to promote, as mostly in gradients
    known = (Tensor, Variable, bool, int, float, complex)
    values = [v if isinstance(v, known) else convert_to_tensor(v) for v in values]
    if state.autocast is not None:
        values = [v.value if isinstance(v, Variable) else v for v in values]
    dtype = common_dtype(values, floating=floating)
    return [convert_to_tensor(v, dtype) for v in values]


def _same(values: list[Any]) -> list[Tensor]:
    return [convert_to_tensor(v) for v in values]


_DTYPE_RULES: dict[str, Callable[[list[Any]], list[Tensor]]] = {
    "promote": promote,
    "float": lambda values: promote(values, floating=True),
    "compare": promote,
    "logical": lambda values: [convert_to_tensor(v, "bool") for v in values],
    "test": _same,
    "real": promote,
    "select": lambda values: [convert_to_tensor(values[0], "bool"), *promote(values[1:])],
}


def apply(op: Operator, inputs: list[Tensor], attrs: dict[str, Any]) -> Any:
    """Run an operator on tensors: record it if a function is being traced, else compute it; tell the tapes.

    Returns
    -------
    Tensor or tuple of Tensor
    """
    specs = op.infer_rule(*[t.spec for t in inputs], **attrs)
    several = not isinstance(specs, Spec)
    specs = specs if several else (specs,)
    shard = None if op.communicates else next((t.shard for t in inputs if t.shard is not None), None)
    if state.tracer is not None:
        outputs = state.tracer.record(op, inputs, attrs, specs, shard)
    else:
        arrays = _compute(op, inputs, attrs, specs, several)
        outputs = [Tensor.wrap(a, shard) for a in arrays]
    for recorder in state.recorders:
        recorder.record(op, inputs, attrs, outputs)
    return tuple(outputs) if several else outputs[0]


def _compute(
    op: Operator, inputs: list[Tensor], attrs: dict[str, Any], specs: Sequence[Spec], several: bool
) -> Sequence[np.ndarray]:
    if any(t.is_symbolic for t in inputs):
        raise TracingError(
            f"{op.name} got a value of a function that was traced earlier. A traced value lives only while its "
            "function runs: return it, or assign it to a Variable, instead of keeping it in a list or attribute."
        )
    arrays = [t.array for t in inputs]
    if op.view_rule is not None:
        view = op.view_rule(*arrays, **attrs)
        if view is not None:
            return view if several else (view,)
    outs = tuple(np.empty(s.shape, dtypes.to_numpy(s.dtype)) for s in specs)
    with denormals.flushed(), np.errstate(all="ignore"):
        op.kernel(outs if several else outs[0], *arrays, **attrs)
    return outs


def require_inexact(name: str, spec: Spec) -> None:
    """Raise a DTypeError unless the dtype is floating-point or complex."""
    if not dtypes.is_inexact(spec.dtype):
        raise DTypeError(f"{name} needs a floating-point or complex tensor, got dtype {spec.dtype}.")


def public(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function composed of operators usable on the symbolic tensors of functional models too."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if _any_keras_tensor(args) or (kwargs and _any_keras_tensor(kwargs.values())):
            return keras_tensor.symbolic_call(wrapper, args, kwargs)
        return function(*args, **kwargs)

    return wrapper


def _any_keras_tensor(values: Any) -> bool:
    return any(
        type(v) is KerasTensor or (type(v) in (list, tuple) and any(type(i) is KerasTensor for i in v)) for v in values
    )
