"""``python -m benchmarks install``: the peers in an environment of their own."""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys

from benchmarks.contestants import PEERS_ENVIRONMENT

TENSORFLOW = "tensorflow-cpu" if platform.machine() == "x86_64" else "tensorflow"

REQUIREMENTS = {
    "torch": ["torch"],
    "torch-compile": ["torch"],
    "jax": ["jax"],
    "keras-tf": ["keras", TENSORFLOW],
    "keras-tf-jit": ["keras", TENSORFLOW],
    "keras-jax": ["keras", "jax"],
}
"""For each peer, what pip has to install."""


def run(options: argparse.Namespace) -> None:
    """Make the environment if there is none, and install into it."""
    pip = [str(PEERS_ENVIRONMENT / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    if not PEERS_ENVIRONMENT.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS_ENVIRONMENT)], check=True)
    wanted = sorted({requirement for peer in options.peers for requirement in REQUIREMENTS[peer]})
    if "torch" in wanted:
        listed = subprocess.run([*pip, "index", "versions", "torch"], capture_output=True, text=True, check=False)
        wanted[wanted.index("torch")] = torch_requirement(listed.stdout)
    subprocess.run([*pip, "install", *wanted, "threadpoolctl"], check=True)


def torch_requirement(listing: str) -> str:
    """The newest build of PyTorch for CPUs if pip's sources have one, else PyTorch as they have it.

    Parameters
    ----------
    listing : str
        What ``pip index versions torch`` printed: versions from new to old.

    Examples
    --------
    >>> torch_requirement("Available versions: 2.9.1, 2.9.0+cpu, 2.9.0, 2.8.0+cpu")
    'torch==2.9.0+cpu'
    """
    builds = re.findall(r"\b[\d.]+\+cpu\b", listing)
    return f"torch=={builds[0]}" if builds else "torch"
