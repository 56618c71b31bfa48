"""``python -m disttensor``: the command ``disttensor``."""

from __future__ import annotations

import sys

from disttensor.cli import main

if __name__ == "__main__":
    sys.exit(main())
