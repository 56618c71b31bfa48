from __future__ import annotations

import signal
import sys

from benchmarks.cli import main

# Ended from outside, as by `timeout`, the command still ends its workers: most are stopped and would stay for ever.
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
sys.exit(main())
