"""Graphs: tracing Python functions, optimising what they compute, and running it again and again."""

from __future__ import annotations

from disttensor.graph.function import Function, function
from disttensor.graph.graph import Graph, Node, Value, ancestors
from disttensor.graph.passes import register, register_last
from disttensor.graph.plan import Plan
from disttensor.graph.tracing import trace

__all__ = ["Function", "Graph", "Node", "Plan", "Value", "ancestors", "function", "register", "register_last", "trace"]
