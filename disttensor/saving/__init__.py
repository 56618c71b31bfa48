"""Saving and loading: configurations, and weights in safetensors files."""

from __future__ import annotations
