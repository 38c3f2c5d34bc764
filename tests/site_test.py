"""What the site is made of: the reference has all that is public, the bibliography all cited."""

import ast
import doctest
import importlib.util
import inspect
import pathlib
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib import image

import kernelgrad

ROOT = pathlib.Path(__file__).parents[1]
DOCS, FRONT = ROOT / "docs", ROOT / "build" / "docs" / "docs" / "index.html"
ROOMS = [name for name in dir(kernelgrad) if not name.startswith("_")]
MODULES = sorted(
    path.stem for path in (ROOT / "kernelgrad").glob("*.py") if ">>> " in path.read_text()
)
CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "chrome"])), None)
CITED = re.compile(
    r"(?:[A-Z][\w'\u2019-]+(?: [A-Z][\w-]+)?(?:, | & | et al\. | (?=\d)))+(?:1[89]|20)\d\d\b"
)


@pytest.fixture(scope="module")
def conf():
    """The settings of the site."""
    spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def public(room):
    """Yields the public functions of a room, those made for it in private ones too."""
    module = getattr(kernelgrad, room)
    for name, value in vars(module).items():
        home = getattr(value, "__module__", "")
        made = home == module.__name__ or home.startswith("kernelgrad._")
        if inspect.isfunction(value) and made and not name.startswith("_"):
            yield name, value


def citations():
    """Yields what the docstrings of the library cite."""
    for path in (ROOT / "kernelgrad").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                for section in re.findall(r"^References:\n((?:  .*\n?)+)", text, re.MULTILINE):
                    yield from CITED.findall(" ".join(section.split()))


def test_every_room_has_its_page_in_the_reference():
    pages = {path.stem for path in (DOCS / "api").glob("*.md")} - {"index"}
    listed = re.findall(r"^(\w+)$", (DOCS / "api" / "index.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(ROOMS) == sorted(pages)
    for room in ROOMS:
        text = (DOCS / "api" / f"{room}.md").read_text()
        assert f".. automodule:: kernelgrad.{room}\n   :members:\n   :imported-members:\n" in text


def test_every_public_function_is_on_a_page(conf):
    shown, missing = set(), {}
    for room in ROOMS:
        left_out = re.search(r":exclude-members: (.*)", (DOCS / "api" / f"{room}.md").read_text())
        for name, value in public(room):
            assert conf.belongs(f"kernelgrad.{room}", name, value)
            assert inspect.getdoc(value), name
            if left_out and name in left_out[1].split(", "):
                missing[value] = f"{room}.{name}"
            else:
                shown.add(value)
    assert [name for value, name in missing.items() if value not in shown] == []


def test_every_public_function_has_an_example_of_its_call():
    example = re.compile(r"^Example:\n((?:  .*\n?)+)", re.MULTILINE)
    for room in ROOMS:
        for name, value in public(room):
            shown = example.search(inspect.getdoc(value))
            assert shown, f"{room}.{name}"
            assert shown[1].startswith("  >>> from kernelgrad import "), f"{room}.{name}"
            assert re.search(rf"\w\.{name}\b", shown[1]), f"{room}.{name}"
            assert shown[1].count("\n  >>> ") < 8, f"{room}.{name}"


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_docstrings_run(name, request):
    if name == "_sinkhorn":
        pytest.importorskip("ott", reason="ott-jax is an extra: pip install 'kernelgrad[ott]'")
        request.getfixturevalue("loose_promotion")  # its own code is not strict
    module, failures = importlib.import_module(f"kernelgrad.{name}"), []
    given = {"jax": jax, "jnp": jnp, "optax": optax}
    runner = doctest.DocTestRunner(verbose=False)
    with np.printoptions(precision=3, suppress=True):
        for test in doctest.DocTestFinder().find(module, globs=given):
            runner.run(test, out=failures.append)
    assert runner.tries > 0
    assert failures == [], "".join(failures)


def test_the_bibliography_has_what_docstrings_cite():
    text = " ".join((DOCS / "bibliography.md").read_text().split())
    named = set(re.findall(r"- \*\*(.*?)\.\*\*", text))
    found = set(citations())
    assert len(found) > 70
    assert found - named == set()


def test_citations_are_seen():
    text = "Beck & Teboulle 2009; noise: Liu, Lee & Jordan 2016, eq. (6); Gallego & Rios Insua 2018"
    assert CITED.findall(text) == [
        "Beck & Teboulle 2009",
        "Liu, Lee & Jordan 2016",
        "Gallego & Rios Insua 2018",
    ]


def test_every_page_is_in_a_contents():
    """What the site is built of, but for the README, is reached from the front page."""
    listed = set()
    for page in (DOCS / "index.md", DOCS / "api" / "index.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.splitlines():
                if line and not line.startswith(":"):
                    listed.add((page.parent / f"{line}.md").resolve())
    pages = {*DOCS.glob("**/*.md"), *ROOT.glob("*.md")} - {DOCS / "index.md", ROOT / "README.md"}
    assert listed == pages


def browse(page, folder, *options):
    """Opens a page of the site in a browser and returns what that prints."""
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run hide-scrollbars disable-sync"
    flags += " disable-background-networking disable-component-update virtual-time-budget=10000"
    command = [CHROMIUM, *(f"--{flag}" for flag in flags.split()), *options, page.as_uri()]
    command.insert(1, f"--user-data-dir={folder / 'profile'}")
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.thorough
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
@pytest.mark.skipif(not FRONT.exists(), reason="no site in build/docs: make docs")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_front_page_shows_its_formulas_and_its_picture(width, tmp_path):
    size, path = f"--window-size={width},2400", tmp_path / "front.png"
    page = browse(FRONT, tmp_path, size, "--dump-dom")
    formulas = re.findall(r'class="math [^"]*"', page)
    assert len(re.findall("<mjx-container", page)) == len(formulas) > 8
    assert "<mjx-merror" not in page
    assert not re.search(r'src="https?:', page)
    browse(FRONT, tmp_path, size, f"--screenshot={path}")
    red, green, blue = np.moveaxis(image.imread(path)[..., :3], -1, 0)
    arrows = (red > 0.6) & (green < 0.5) & (blue < 0.5)  # of the field in the picture
    assert arrows.sum() > width / 4
