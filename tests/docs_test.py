"""What the pages say: links lead somewhere, Python runs, commands are taken by their binaries."""

import ast
import importlib
import pathlib
import re
import shlex
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
}
IMAGES = ("png", "gif")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"python -m experiments\.(\w+)((?:[^`\n\\]|\\\n|\n(?=\S))*)")
_CODE = re.compile(r"^    .*\n(?:    .*\n)*|`[^`]+`", re.MULTILINE)


def prose(text):
    """Returns a page without its code."""
    return _CODE.sub("", _FENCE.sub("", text))


def anchors(text):
    """Returns the anchors of a page's headings, as GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text):
    """Yields (binary, arguments) of every command of a page."""
    for code in _CODE.findall(_FENCE.sub("", text)):
        for name, rest in _COMMAND.findall(code.strip("`")):
            yield name, shlex.split(rest.replace("\\\n", " ").replace("\n", " "), comments=True)


def blocks(page):
    """Returns the Python of a page, block by block."""
    return [code for language, code in _FENCE.findall(PAGES[page]) if language == "python"]


def run(page):
    """Runs a page's Python from the first block to the last, and returns what it has defined."""
    names = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for code in blocks(page):
            exec(compile(code, page, "exec"), names)  # noqa: S102
    return names


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    wrong = []
    for link in _LINK.findall(prose(PAGES[page])):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            wrong.append(link)
    assert wrong == []


def test_links_are_seen():
    text = "[a](b.md#c-d) `[x](y)`\n\n    [code](z)\n\n![p](q.png)\n"
    assert _LINK.findall(prose(text)) == ["b.md#c-d", "q.png"]
    assert anchors("# A `b`, c-d\n## E (f)\n") == {"a-b-c-d", "e-f"}


def test_every_picture_is_shown_on_a_page():
    shown = set()
    for page, text in PAGES.items():
        for link in _LINK.findall(prose(text)):
            if link.endswith(IMAGES):
                shown.add(((ROOT / page).parent / link).resolve())
    kept = {path for kind in IMAGES for path in ROOT.glob(f"docs/**/*.{kind}")}
    assert shown == kept


CASES = sorted({(page, binary) for page, text in PAGES.items() for binary, _ in commands(text)})


@pytest.mark.parametrize(("page", "binary"), CASES)
def test_commands_are_taken(page, binary, monkeypatch, capsys):
    """A binary reads every flag before --help makes it stop."""
    main = importlib.import_module(f"experiments.{binary}").main
    wrong = []
    for name, arguments in commands(PAGES[page]):
        if name == binary:
            monkeypatch.setattr(sys, "argv", [name, *arguments, "--help"])
            with pytest.raises(SystemExit) as stop:
                main()
            if stop.value.code:
                wrong.append(capsys.readouterr().err)
    assert wrong == []


def test_commands_are_seen():
    text = "`python -m experiments.a --b=1\n--c`\n\n    python -m experiments.d \\\n      --e\nz\n"
    assert list(commands(text)) == [("a", ["--b=1", "--c"]), ("d", ["--e"])]


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_and_files_of_tests_exist(page):
    code = "\n".join(_CODE.findall(PAGES[page]))
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"\bmake ([a-z-]+)", code)) <= set(targets)
    for path in re.findall(r"\btests/[\w/]+\.py", PAGES[page]):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_python_is_valid_and_names_what_exists(page):
    modules, wrong = {}, []
    for node in [node for code in blocks(page) for node in ast.walk(ast.parse(code))]:
        if isinstance(node, ast.ImportFrom) and node.module == "kernelgrad":
            modules |= {
                alias.name: importlib.import_module(f"kernelgrad.{alias.name}")
                for alias in node.names
            }
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module and not hasattr(module, node.attr):
                wrong.append(f"{node.value.id}.{node.attr}")
    assert wrong == []


def test_the_readme_runs():
    names = run("README.md")
    x, y, params = names["x"], names["y"], names["state"].params
    assert abs(x.mean(axis=0) - y.mean(axis=0)).max() < 0.3
    assert abs(params["shift"] - y.mean(axis=0)).max() < 0.3
    assert abs(params["scale"] - y.std(axis=0)).max() < 0.3


@pytest.mark.slow
def test_the_library_page_runs(capsys):
    names = run("docs/library.md")
    assert capsys.readouterr().out.count("p_value=") == 4
    assert names["keep"].shape == (10,)


def test_the_readme_names_every_objective(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module("experiments.train").main()
    text = " ".join(capsys.readouterr().out.split())
    known = re.search(r"--objective .*?Expected: one of ([\w, ]+);", text)[1].split(", ")
    rows = re.findall(r"^\| (`[^|]+) \|", PAGES["README.md"], re.MULTILINE)
    named = re.findall(r"`(\w+)`", " ".join(rows))
    assert sorted(named) == sorted(known)


def test_the_experiments_page_names_every_binary():
    rows = re.findall(r"^\| `(\w+)` \|", PAGES["docs/experiments.md"], re.MULTILINE)
    sources = ROOT.glob("experiments/*.py")
    binaries = [path.stem for path in sources if "\ndef main(" in path.read_text()]
    assert sorted(rows) == sorted(set(binaries) - {"command"})
