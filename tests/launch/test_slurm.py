"""What a Slurm job says about itself; ``tests/slurm`` asks a real one."""

from __future__ import annotations

import pytest

from launch.slurm import end_time
from tests.launch.conftest import write_program


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("7 1795688236", 1795688236),
        ("9 1795680000\\n7 1795688236\\n8 1795680000", 1795688236),  # jobs of an array, whose number this one has
        ("9 1795680000", None),
        ("7 NONE", None),
        ("7", None),
        ("", None),
        ("7 2026-11-26T10:17:16", None),
    ],
)
def test_the_end_of_a_job_is_asked_for(tmp_path, said, expected):
    asked = "%s --noheader --jobs=7 --format=%A %e"
    write_program(tmp_path / "squeue", f'[ "$SQUEUE_STATES$SLURM_TIME_FORMAT $*" = "{asked}" ] && printf "{said}\\n"')
    assert end_time({"SLURM_JOB_ID": "7", "SQUEUE_STATES": "PD", "PATH": f"{tmp_path}:/bin"}) == expected


def test_the_end_of_a_job_that_needs_no_question():
    assert end_time({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1795688236", "PATH": "/nowhere"}) == 1795688236
    assert end_time({"PATH": "/nowhere"}) is None
    assert end_time({"SLURM_JOB_ID": "7", "PATH": "/nowhere"}) is None
