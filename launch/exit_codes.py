"""Exit codes with a meaning of their own; programs that train, `disttensor-run` and batch scripts share them."""

from __future__ import annotations

REQUEUE = 75
"""EX_TEMPFAIL of sysexits.h: a signal (SIGTERM, SIGUSR1) ended the training early, after a complete checkpoint was
written. The same command, run again, goes on from there: start it once more, or requeue the job."""

INTERRUPTED = 130
"""Ctrl-C ended the training, after a complete checkpoint where there is one to write to. Nobody should restart it."""
