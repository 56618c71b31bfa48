"""Prepare the virtual environment of this Python for plain ``mpirun``: ``python -m launch.setup_environment``.

``disttensor-run`` needs none of this. For people who type ``mpirun -n 4 python train.py`` it settles what Open MPI
otherwise refuses or does badly on a workstation:

* ``etc/prte-mca-params.conf`` of the environment, Open MPI's own file of defaults, gets: more ranks than cores are
  allowed, hosts are filled one after the other, and ranks are not bound to single cores, so that each may use threads.
* ``bin/activate`` lets root use mpirun, if it is root who activates the environment. Open MPI accepts that word from
  environment variables and its command line only.

Both are blocks between two comments, which this command writes again and nobody else touches; delete them to undo it.
An environment without Open MPI is left alone: MPICH and Intel MPI need nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_BEGIN = "# >>> disttensor: plain mpirun; written by `python -m launch.setup_environment` >>>"
_END = "# <<< disttensor <<<"
_DEFAULTS = """\
rmaps_default_mapping_policy = slot:oversubscribe
hwloc_default_binding_policy = none"""
_ROOT = """\
if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi"""


def set_up(prefix: Path) -> list[Path]:
    """Write the blocks into the environment at `prefix`.

    Parameters
    ----------
    prefix : Path
        Where the environment lies, `sys.prefix` for the running one.

    Returns
    -------
    list of Path
        The files that hold a block now; none without Open MPI.
    """
    defaults, activate = prefix / "etc" / "prte-mca-params.conf", prefix / "bin" / "activate"
    if not defaults.exists():
        return []
    blocks = {defaults: _DEFAULTS, activate: _ROOT}
    written = [path for path in blocks if path.exists()]
    for path in written:
        _write_block(path, blocks[path])
    return written


def _write_block(path: Path, block: str) -> None:
    """Put the block at the end of the file, in place of an earlier one."""
    text = path.read_text()
    before, found, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2].lstrip("\n") if found else ""
    fresh = f"{before.rstrip()}\n\n{_BEGIN}\n{block}\n{_END}\n{after}"
    if fresh == text:
        return
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w") as file:
        file.write(fresh)
        file.flush()
        os.fsync(file.fileno())
    beside.chmod(path.stat().st_mode)
    beside.rename(path)


def main() -> int:
    """Set up the running environment and say what was done."""
    written = set_up(Path(sys.prefix))
    print("\n".join(f"prepared for plain mpirun: {path}" for path in written) or "no Open MPI here; nothing to do")
    return 0


if __name__ == "__main__":
    sys.exit(main())
