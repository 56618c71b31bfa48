"""The training loop: compile, fit, evaluate, predict, and the callbacks that watch it."""

from __future__ import annotations
