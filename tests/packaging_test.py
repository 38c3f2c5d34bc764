"""What a release holds: the library alone, for a package `experiments` would clash in others'."""

import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import kernelgrad

ROOT = pathlib.Path(__file__).parents[1]
MODULES = {f"kernelgrad/{path.name}" for path in (ROOT / "kernelgrad").glob("*.py")}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The wheel and the source distribution."""
    tree, folder = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in ("kernelgrad", "experiments"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob(f"kernelgrad-{kernelgrad.__version__}-*.whl")
    (source,) = folder.glob(f"kernelgrad-{kernelgrad.__version__}.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def built(released):
    """The names in the wheel and in the source distribution."""
    wheel, source = released
    with zipfile.ZipFile(wheel) as archive, tarfile.open(source) as files:
        inside = [pathlib.PurePath(name).parts[1:] for name in files.getnames()]
        return set(archive.namelist()), {"/".join(parts) for parts in inside}


def test_the_wheel_holds_the_library_alone(built):
    names, _ = built
    about = f"kernelgrad-{kernelgrad.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(about)} == MODULES | {
        "kernelgrad/py.typed"
    }
    assert about + "licenses/LICENSE" in names


def test_the_source_holds_what_the_wheel_is_built_from(built):
    _, names = built
    assert names >= MODULES | {"kernelgrad/py.typed", "pyproject.toml", "README.md", "LICENSE"}
    assert not {name for name in names if name.startswith("experiments")}


def test_the_release_is_fit_for_an_index(released):
    pytest.importorskip("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, released)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {kernelgrad.__version__}\n" in text
