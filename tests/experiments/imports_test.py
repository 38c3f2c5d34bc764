"""What stands at the top of experiments/, and who may import whom, read from the source."""

import ast
import graphlib
import pathlib
import re
import runpy

import pytest

import experiments

ROOT = pathlib.Path(experiments.__file__).parent
PATHS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in ROOT.rglob("*.py")
    if path not in (ROOT / "__init__.py", ROOT / "__main__.py")
}
PACKAGES = {"kernelgrad", "experiments"} | {
    f"experiments.{path.parent.name}" for path in ROOT.glob("*/__init__.py")
}
BINARIES = {name for name in PATHS if "." not in name}

# Imports run downwards: from a folder to itself or to one of an earlier row.
ROWS = [
    {"run", "pictures"},
    {"data"},
    {"networks"},
    {"targets"},
    {"judges"},
    {"training"},
    {"reports", "sweeps"},
    {"papers"},
    {"a binary"},
]
ROW = {folder: row for row, folders in enumerate(ROWS) for folder in folders}


def folder_of(name):
    return name.split(".")[0] if "." in name else "a binary"


def imports(source):
    """Yields the module below experiments of every import, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "experiments":
                    yield alias.name.removeprefix("experiments.")
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative import"
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "experiments":
            for alias in node.names:
                name = f"{node.module}.{alias.name}".removeprefix("experiments.")
                yield name if name in PATHS else name.rpartition(".")[0]


def faults(name, source):
    """Yields what the module `name` below experiments must not do."""
    own = folder_of(name)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in PACKAGES:
            yield from (f"{name} renames {alias.name}" for alias in node.names if alias.asname)
    for other in imports(source):
        if other not in PATHS:
            yield f"{name} imports {other}, which is no module"
        elif folder_of(other) != own and ROW[folder_of(other)] >= ROW[own]:
            yield f"{name} imports {other}, which is not below it"
        elif own == folder_of(other) == "a binary":
            yield f"{name} imports {other}, another binary"


def test_the_package_lists_its_binaries():
    listed = re.findall(r"^(\w+)  +\S", experiments.__doc__, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == BINARIES


def test_the_package_prints_its_list(capsys):
    runpy.run_module("experiments", run_name="__main__")
    assert capsys.readouterr().out == experiments.__doc__ + "\n"


def test_the_package_lists_its_folders():
    (line,) = (line for line in experiments.__doc__.splitlines() if line.startswith("Everything"))
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(line.split(": ")[1].rstrip(".").split(", ")) == folders
    assert folders | {"a binary"} == set(ROW)


@pytest.mark.parametrize("name", sorted(BINARIES))
def test_a_binary_is_one(name):
    source = PATHS[name].read_text()
    functions = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    assert functions[-1] == "main"
    assert source.endswith('if __name__ == "__main__":\n    main()\n')
    assert f"python -m experiments.{name} " in ast.get_docstring(ast.parse(source))


@pytest.mark.parametrize("name", sorted(PATHS))
def test_imports_run_downwards(name):
    assert list(faults(name, PATHS[name].read_text())) == []


def test_no_imports_in_a_circle():
    graph = {name: set(imports(path.read_text())) for name, path in PATHS.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("train", "from experiments import toy"),
        ("train", "from experiments.toy import run"),
        ("train", "import experiments.toy"),
        ("run.files", "from experiments.data import catalog"),
        ("run.files", "from experiments.pictures import charts"),
        ("run.files", "def f():\n    from experiments.data.catalog import load"),
        ("data.catalog", "from experiments.networks.generators import DCGAN"),
        ("data.catalog", "from experiments import train"),
        ("training.fit", "from experiments.reports import toys"),
        ("training.fit", "from experiments.data import catalog as datasets"),
        ("training.fit", "from kernelgrad import critic as critics"),
        ("training.fit", "from . import models"),
        ("training.fit", "from experiments.nosuch import models"),
        ("training.fit", "from experiments.data.nosuch import load"),
    ],
)
def test_the_walk_sees_a_fault(name, source):
    assert len(list(faults(name, source))) == 1


def test_the_walk_lets_the_rest_pass():
    source = "import jax as j\nfrom experiments.data import catalog\nfrom kernelgrad import train"
    assert list(faults("training.fit", source)) == []
    assert list(faults("toy", "from experiments.training.fit import run")) == []


def test_the_walk_sees_a_circle():
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
