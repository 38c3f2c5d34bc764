"""Who may import whom, read from the source; and what importing may do."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest

import kernelgrad

SOURCES = {path.stem: path for path in pathlib.Path(kernelgrad.__file__).parent.glob("*.py")}

# Imports run downwards: from a later row to an earlier one, never inside a row.
ROWS = [
    {"__init__"},
    {"types"},
    {"_devices", "_numeric", "_traits", "_profiles"},
    {"_checks", "_equality"},
    {"_distances", "_batch", "_average", "_weights"},
    {"_tiles"},
    {"pairwise", "_folds"},
    {"median", "_gram", "_composed", "_stein"},
    {"_solve", "_markov", "_resampling", "_players"},
    {"kernels", "_convex", "_probes", "_incomplete"},
    {"_ratio_models", "_two_sample", "_pivots", "_thinning"},
    {"_ratio_fits"},
    {"selection"},
    {
        *{"score", "mmd", "ksd", "svgd", "ratio", "kale", "adversarial", "hmc", "langevin"},
        *{"metrics", "score_peers", "fssd", "kmm", "noise", "certificate", "drift", "energy"},
        "feature_maps",
    },
    {
        *{"latent", "pullback", "chains", "kale_rkhs", "kernel_learning"},
        *{"low_rank", "low_rank_fits"},
    },
    {"_algebra", "_fields", "_ratios", "_sinkhorn"},
    {"objectives"},
    {"_learned_features"},
    {"two_player"},
    {"critic", "steingan"},
    {"train"},
]
ROW = {name: row for row, names in enumerate(ROWS) for name in names}
EXTRAS = {"_sinkhorn": {"ott"}}  # imported where they are called for
OPTAX = {"train", "critic", "svgd", "pullback", "kernel_learning"}


def imported(source):
    """Yields (package, module or None) of every import, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, module = alias.name.partition(".")
                yield package, module or None
        elif isinstance(node, ast.ImportFrom):
            package, _, module = (node.module or "").partition(".")
            if node.level:
                package, module = "kernelgrad", node.module or ""
            for name in [module] if module else [alias.name for alias in node.names]:
                yield package, name


def faults(name, source):
    """Yields what `kernelgrad/<name>.py` must not do."""
    for package, module in imported(source):
        if package == "kernelgrad":
            if module is None or ROW.get(module.split(".")[0], len(ROWS)) >= ROW[name]:
                yield f"{name} imports {module}, which is not below it"
        elif package == "optax":
            if name not in OPTAX:
                yield f"{name} imports optax"
        elif package in EXTRAS.get(name, ()):
            continue
        elif package not in {"jax", "numpy"} and package not in sys.stdlib_module_names:
            yield f"{name} imports {package}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id in {"print", "open", "input"}:
            yield f"{name} uses {node.id}"
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.config":
            yield f"{name} uses jax.config"


def test_every_module_has_its_row():
    assert set(SOURCES) <= set(ROW)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_imports_run_downwards(name):
    assert list(faults(name, SOURCES[name].read_text())) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pairwise", "from kernelgrad import kernels"),
        ("pairwise", "from kernelgrad import _checks, median"),
        ("pairwise", "def f():\n    from kernelgrad.kernels import gram"),
        ("median", "import kernelgrad.kernels"),
        ("mmd", "from kernelgrad import ksd"),
        ("mmd", "from .ksd import stein_gram"),
        ("mmd", "from . import train"),
        ("mmd", "import kernelgrad"),
        ("mmd", "import optax"),
        ("mmd", "import flax.linen as nn"),
        ("train", "from absl import logging"),
        ("train", "import experiments.data"),
        ("train", "import jax\njax.config.update('jax_enable_x64', True)"),
        ("train", "print(1)"),
    ],
)
def test_the_walk_sees_a_fault(name, source):
    assert len(list(faults(name, source))) == 1


def test_the_walk_lets_the_rest_pass():
    source = "import math\nimport jax.numpy as jnp\nfrom kernelgrad import _checks, kernels"
    assert list(faults("mmd", source)) == []
    assert list(faults("train", "import optax\nfrom kernelgrad import mmd, objectives")) == []


def test_the_map_lists_every_public_module_by_storey():
    listed = re.findall(r"^ {4}(\w+)  ", kernelgrad.__doc__, re.MULTILINE)
    assert sorted(listed) == sorted(name for name in SOURCES if not name.startswith("_"))
    assert listed == sorted(listed, key=ROW.get)
    assert sorted(dir(kernelgrad)) == sorted([*listed, "__version__"])


@pytest.mark.parametrize("name", ["_tiles_", "utils", "__all__"])
def test_there_is_no_other_module(name):
    with pytest.raises(AttributeError, match=f"module 'kernelgrad' has no attribute '{name}'"):
        getattr(kernelgrad, name)


PROGRAM = """
import sys
import kernelgrad
assert not {"jax", "numpy", "optax"} & set(sys.modules)
for name in dir(kernelgrad):
    getattr(kernelgrad, name)
print(*(name.removeprefix("kernelgrad.") for name in sys.modules if "kernelgrad." in name))
import jax.numpy
jax.numpy.zeros(1)
"""


def test_importing_everything_does_no_device_work():
    """With a platform that does not exist, the first array fails, and no import does.

    Each module is an attribute of the package, which alone loads nothing.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "JAX_PLATFORMS": "no_such_platform"},
        capture_output=True,
        text=True,
    )
    assert set(done.stdout.split()) == set(SOURCES) - {"__init__"}, done.stderr
    assert done.returncode != 0
    assert "no_such_platform" in done.stderr
