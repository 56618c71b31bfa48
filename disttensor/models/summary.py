"""`Model.summary`: a table of layers, shapes and parameters."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from disttensor import distributed
from disttensor.distributed.partition import whole_shape
from disttensor.errors import ArgumentError
from disttensor.layers import Layer
from disttensor.optimizers import ShardedOptimizer

if TYPE_CHECKING:
    from disttensor.models.model import Model


def print_summary(
    model: Model,
    line_length: int | None,
    print_fn: Callable[[str], Any] | None,
    expand_nested: bool,
    show_trainable: bool,
    layer_range: Any,
) -> None:
    """Print the summary of a model on rank 0, or hand its text to `print_fn`."""
    if not distributed.is_main():
        return
    from shutil import get_terminal_size

    from rich.console import Console
    from rich.table import Table

    connected = model._layer_graph is not None and not _is_chain(model)
    headings = ["Layer (type)", "Output Shape", "Param #"]
    headings += ["Connected to"] * connected + ["Trainable"] * show_trainable
    table = Table(title=f'Model: "{model.name}"', title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right" if heading == "Param #" else "left")
    for layer, depth in _rows(_in_range(model.layers, layer_range), expand_nested, 0):
        cells = [f"{'  ' * depth}{layer.name} ({type(layer).__name__})", _output_shape(layer), _parameters(layer)]
        cells += [_sources(layer)] * connected + ["yes" if layer.trainable else "no"] * show_trainable
        table.add_row(*cells)
    text = io.StringIO()
    Console(file=text, width=line_length or get_terminal_size().columns, force_terminal=False).print(table)
    print(*_totals(model), sep="\n", end="", file=text)
    (print_fn or print)(text.getvalue())


def _rows(layers: list[Layer], expand: bool, depth: int) -> list[tuple[Layer, int]]:
    found = []
    for layer in layers:
        found.append((layer, depth))
        if expand and hasattr(layer, "layers"):
            found.extend(_rows(layer.layers, expand, depth + 1))
    return found


def _in_range(layers: list[Layer], layer_range: Any) -> list[Layer]:
    if layer_range is None:
        return layers
    names = [layer.name for layer in layers]
    first, last = layer_range
    if first not in names or last not in names:
        raise ArgumentError(f"layer_range {layer_range!r} must name two of the layers {names}.")
    return layers[names.index(first) : names.index(last) + 1]


def _is_chain(model: Model) -> bool:
    graph = model._layer_graph
    assert graph is not None
    return len(graph.inputs) == 1 and all(len(node.inputs) == 1 for node in graph.nodes)


def _output_shape(layer: Layer) -> str:
    if not layer._inbound_nodes:
        return "?"
    shapes = [str(t.shape) for t in layer._inbound_nodes[-1].outputs]
    return shapes[0] if len(shapes) == 1 else ", ".join(shapes)


def _parameters(layer: Layer) -> str:
    return f"{layer.count_params():,}" if layer.built else "0 (unbuilt)"


def _sources(layer: Layer) -> str:
    nodes = [tensor._keras_history for node in layer._inbound_nodes for tensor in node.inputs]
    return ", ".join(node.operation.name for node in nodes if node is not None) or "-"


def _totals(model: Model) -> list[str]:
    trainable, frozen = model.trainable_weights, model.non_trainable_weights
    lines = []
    for title, variables in (("Total", trainable + frozen), ("Trainable", trainable), ("Non-trainable", frozen)):
        count = sum(math.prod(whole_shape(v)) for v in variables)
        size = sum(v.memory.nbytes for v in variables)
        lines.append(f" {title} params: {count:,} ({_bytes(size)})")
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, ShardedOptimizer) and optimizer.built:
        memory = optimizer.memory()
        here = _bytes(memory["here"])
        lines.append(f" Optimizer state: {_bytes(memory['whole'])}, of which {here} are on this process")
    return lines


def _bytes(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024 or unit == "GB":
            break
        size /= 1024
    return f"{size:.2f} {unit}"
