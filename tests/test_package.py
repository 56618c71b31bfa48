"""What holds for the package as a whole: quick to import, safe, complete, its examples true."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import platform
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "disttensor").rglob("*.py"), *(ROOT / "launch").rglob("*.py")])
HEAVY = ["numba", "llvmlite", "scipy", "mpi4py.MPI", "rich", "safetensors", "jax", "keras", "sklearn", "PIL", "h5py"]
# Of the standard library, what takes milliseconds and few programs need.
RARE = {"concurrent.futures", "difflib", "fractions", "gzip", "shutil", "subprocess", "tarfile", "zipfile"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_python(*arguments: str) -> str:
    """What a fresh interpreter, alone and outside of any MPI job, prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI_", "PMIX_", "SLURM_"))}
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported_names(tree: ast.AST) -> set[str]:
    """The modules that are imported anywhere, also inside functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


@pytest.mark.parametrize("statement", ["import disttensor", "import launch.cli"])
def test_importing_leaves_heavy_modules_out(statement):
    loaded = run_python("-c", f"import sys; {statement}; print([m for m in {HEAVY} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_importing_leaves_what_is_rarely_needed_to_later():
    # numpy may bring some of them, which costs nothing more.
    program = f"import sys, numpy; rare = {RARE} - {{*sys.modules}}; import disttensor; print(rare & {{*sys.modules}})"
    loaded = run_python("-c", program)
    assert loaded.strip() == "set()"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_unpickled_or_evaluated(path):
    tree = ast.parse(path.read_text())
    assert not {name.partition(".")[0] for name in imported_names(tree)} & FORBIDDEN_MODULES
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS), f"line {node.lineno}"
            assert all(
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                for keyword in node.keywords
                if keyword.arg == "allow_pickle"
            ), f"line {node.lineno}"


@pytest.mark.parametrize("path", sorted((ROOT / "launch").rglob("*.py")), ids=name_of)
def test_the_launcher_needs_the_standard_library_only(path):
    imported = {name.partition(".")[0] for name in imported_names(ast.parse(path.read_text()))}
    assert imported <= {*sys.stdlib_module_names, "launch"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_examples_in_docstrings_run(path):
    module = importlib.import_module(name_of(path))
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert results.failed == 0


def test_the_program_in_the_readme_runs():
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    run_python("-c", program)


_CONVNET = """
x = keras.ops.ones((4, 8, 8, 1))
model = keras.Sequential([
    layers.Conv2D(3, 3, activation="relu"), layers.BatchNormalization(), layers.MaxPooling2D(), layers.Flatten(),
    layers.Dropout(0.5), layers.Dense(10),
])
"""
_TRANSFORMER = """
x = keras.ops.ones((4, 8), "int32")
tokens = keras.Input((8,), dtype="int32")
y = layers.Embedding(20, 16)(tokens)
y = layers.LayerNormalization()(y + layers.MultiHeadAttention(num_heads=2, key_dim=8)(y, y))
model = keras.Model(tokens, layers.Dense(10)(layers.GlobalAveragePooling1D()(y)))
"""
_RECURRENT = """
x = keras.ops.ones((4, 8), "int32")
model = keras.Sequential([
    layers.Embedding(20, 16, "random_normal"), layers.LSTM(8, return_sequences=True), layers.GRU(8),
    layers.Dense(10, kernel_initializer="he_normal"), layers.GaussianNoise(0.1),
])
"""


@pytest.mark.parametrize("model", [_CONVNET, _TRANSFORMER, _RECURRENT], ids=["convnet", "transformer", "recurrent"])
def test_a_model_takes_its_first_step_without_numba_and_once_compiled_without_llvm(model):
    # Their import takes longer than the step.
    before = "import sys, disttensor as keras\nfrom disttensor import layers\n"
    after = """
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, metrics=["accuracy"])
model.fit(x, keras.ops.zeros((4,), "int32"), verbose=0)
print("numba" in sys.modules, "llvmlite.binding" in sys.modules)
"""
    run_python("-c", before + model + after)
    numba, llvm = run_python("-c", before + model + after).split()
    assert numba == "False"
    # Elsewhere it takes LLVM to link what was compiled.
    assert llvm == "False" or sys.platform != "linux" or platform.machine() != "x86_64"


@pytest.mark.slow
def test_the_wheel_is_complete(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True
    )
    (wheel,) = tmp_path.glob("disttensor-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"disttensor/py.typed", "disttensor/datasets/digits.npz", "launch/cli.py"} <= names
    assert {str(path.relative_to(ROOT)) for path in SOURCES} <= names
    assert not {name for name in names if name.startswith(("tests/", "examples/"))}
