"""Benchmarks of disttensor beside other frameworks: ``python -m benchmarks``; see README.md in this folder.

Not part of the installed package. The commands themselves need the standard library only; what is measured runs in
processes of its own.
"""
