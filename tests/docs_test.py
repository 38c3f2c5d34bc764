"""What the pages say: links lead somewhere, Python runs, commands are taken by their binaries."""

import ast
import builtins
import dis
import importlib
import inspect
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from experiments.data import catalog
from experiments.data.dataset import Dataset
from experiments.judges import classifiers
from experiments.run import cluster, workdirs
from experiments.training import fit
from kernelgrad import kernels, langevin

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
}
IMAGES = ("png", "gif")
_FENCE = re.compile(r"^```(?:\{code-cell\} )?(\{?[\w-]*\}?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"python -m experiments\.(\w+)((?:[^`\n\\]|\\\n|\n(?=\S))*)")
_CODE = re.compile(r"^    .*\n(?:    .*\n)*|`[^`]+`", re.MULTILINE)


def prose(text):
    """Returns a page without its code."""
    return _CODE.sub("", _FENCE.sub("", text))


def broken_off(text):
    """Returns the lines within a sentence that begin as an item of a list would."""
    found = []
    for block in prose(text).split("\n\n"):
        items, before = set(), ":"
        for line in block.strip("\n").split("\n"):
            item = re.match(r"( *)(?:[-+*]|\d+[.)]) ", line)
            if item and item[1] not in items and not re.search(r"[.:;)|*]$", before):
                found.append(line)
            items |= {item[1]} if item else set()
            before = line
    return found


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


def run(page, count=None):
    """Runs the first blocks of a page's Python, or all, and returns what they have defined."""
    names = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for code in blocks(page)[:count]:
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


@pytest.mark.parametrize("page", PAGES)
def test_no_sentence_breaks_off_into_a_list(page):
    assert broken_off(PAGES[page]) == []


def test_broken_off_sentences_are_seen():
    text = "# A\n\nsome 1 / (1\n- b2) steps,\nof which:\n\n- one\n- two.\n  3. x\n\n- three\n"
    assert broken_off(text) == ["- b2) steps,"]
    assert broken_off("- A is 2 and\n  345. So\n- b\n- c") == ["  345. So"]


def test_every_picture_is_shown_on_a_page():
    shown = set()
    for page, text in PAGES.items():
        for link in _LINK.findall(prose(text)):
            if link.endswith(IMAGES):
                shown.add(((ROOT / page).parent / link).resolve())
    kept = {path for kind in IMAGES for path in ROOT.glob(f"docs/**/*.{kind}")}
    assert shown == kept


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/results/")])
def test_pictures_are_files_that_a_command_of_the_page_leaves(page):
    text = PAGES[page]
    shown = [link for link in _LINK.findall(prose(text)) if link.endswith(IMAGES)]
    files = re.findall(r"`(runs/[\w/]+\.(?:png|gif))`", text)
    assert sorted(link[-3:] for link in shown) == sorted(file[-3:] for file in files)
    folders = {
        flag.removeprefix("--workdir=")
        for _, arguments in commands(text)
        for flag in arguments
        if flag.startswith("--workdir=")
    }
    left = [file for file in files if any(file.startswith(f"{folder}/") for folder in folders)]
    assert left == files


CASES = sorted({(page, binary) for page, text in PAGES.items() for binary, _ in commands(text)})
STORED = {  # (training, test) examples and their shape, of sets that are no part of the checkout
    "mnist": (60_000, 10_000, (28, 28, 1)),
    "cifar10_jpeg": (50_000, 10_000, (32, 32, 3)),
    "red_wine": (1279, 160, (10,)),
    "white_wine": (3918, 490, (10,)),
    "parkinsons": (4700, 587, (15,)),
}


class Begun(BaseException):
    """A run has come to where it writes, computes, or starts others."""


@pytest.fixture
def beginning(monkeypatch, tmp_path):
    """Lets runs come to their beginning, on stand-ins for data that are not there."""

    def begin(*_, **__):
        raise Begun

    whole = catalog.load

    def load(name, data_dir=None, *, seed=0, image_size=None, check=lambda _: None, **_):
        dataset = stand_in(name, data_dir, seed, image_size, whole)
        check(dataset)
        return dataset

    def stand_in(name, data_dir, seed, image_size, whole):
        if name.startswith("./"):  # a folder of one's own
            images = np.zeros((200, image_size, image_size, 3), np.uint8)
            return Dataset(name, images, images, None, None, 0)
        if name not in STORED:
            return whole(name, data_dir, seed=seed, image_size=image_size)
        assert data_dir is not None
        *sizes, shape = STORED[name]
        draw = np.random.default_rng(seed).normal if len(shape) == 1 else None
        parts = [draw(size=(n, *shape)) if draw else np.zeros((n, *shape), np.uint8) for n in sizes]
        labels = [np.arange(n) % 10 for n in sizes]
        return Dataset(name, *parts, *labels, 10, parts[1], labels[1])

    monkeypatch.setattr(workdirs.Workdir, "__init__", begin)
    monkeypatch.setattr(cluster, "join", lambda *_, **__: None)
    monkeypatch.setattr(subprocess, "Popen", begin)
    monkeypatch.setattr(classifiers, "train_or_load", begin)
    monkeypatch.setattr(fit, "make_advance", begin)
    monkeypatch.setattr(catalog, "load", load)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("page", "binary"), CASES)
def test_commands_come_to_their_beginning(page, binary, beginning, monkeypatch, capsys):
    """Settings are taken and go together; a run that is read is one that a command leaves."""
    main = importlib.import_module(f"experiments.{binary}").main
    trained = {
        flag
        for text in PAGES.values()
        for name, arguments in commands(text)
        if name in {"train", "compare"}
        for flag in arguments
    }
    wrong = []
    for name, arguments in commands(PAGES[page]):
        if name == binary:
            monkeypatch.setattr(sys, "argv", [name, *arguments])
            try:
                main()
            except Begun:
                continue
            except SystemExit as stop:
                if stop.code == 0:  # it is done, for it only writes
                    continue
                said = capsys.readouterr().err
            read = re.search(r"workdir: got (runs/\w+)\S* without a readable config.json", said)
            if not read or f"--workdir={read[1]}" not in trained:
                wrong.append(said)
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


def lacking(code, names):
    """Yields module.attribute for what a module among the names of some code does not have."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = names.get(node.value.id)
            if inspect.ismodule(module) and not hasattr(module, node.attr):
                yield f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_python_is_valid_and_names_what_exists(page):
    modules, wrong = {}, []
    for node in [node for code in blocks(page) for node in ast.walk(ast.parse(code))]:
        if isinstance(node, ast.ImportFrom) and node.module == "kernelgrad":
            modules |= {
                alias.name: importlib.import_module(f"kernelgrad.{alias.name}")
                for alias in node.names
            }
    wrong = [name for code in blocks(page) for name in lacking(code, modules)]
    assert wrong == []


def undefined(code, names):
    """Yields the globals of compiled code that are not among the names."""
    for step in dis.get_instructions(code):
        if step.opname == "LOAD_GLOBAL" and not (
            step.argval in names or hasattr(builtins, step.argval)
        ):
            yield step.argval
    for inner in filter(inspect.iscode, code.co_consts):
        yield from undefined(inner, names)


@pytest.fixture
def recipes(monkeypatch):
    """The names of each file that docs/extending.md adds to, with what it adds."""
    rooms = {}
    for code in blocks("docs/extending.md"):
        path = code.partition("\n")[0].removeprefix("# ")
        name = path.removesuffix(".py").replace("/", ".")
        module = importlib.import_module(name) if (ROOT / path).exists() else None
        if path not in rooms:
            there = vars(module) if module else {"__name__": name}
            rooms[path] = {k: dict(v) if isinstance(v, dict) else v for k, v in there.items()}
        names = rooms[path]
        compiled = compile(code, path, "exec")
        exec(compiled, names)  # noqa: S102
        assert [*undefined(compiled, names), *lacking(code, names)] == []
        for new in names.keys() - vars(module).keys() if module else ():
            monkeypatch.setattr(module, new, names[new], raising=False)
    return rooms


def test_the_recipes_make_what_they_say(recipes, rng):
    tables, toys = recipes["tests/oracles.py"], recipes["experiments/data/toys.py"]
    values = [
        tables["RADIAL"]["relativistic"](2.0, 0.7),
        tables["PROFILES"]["relativistic"]((2.0 / 0.7) ** 2),
    ]
    np.testing.assert_allclose(kernels.relativistic(0.7).profile(jnp.array(4.0)), values, rtol=1e-5)
    points, labels = toys["_moons"](rng, 1000)
    assert points.shape == (1000, 2)
    assert set(labels) == {0, 1}
    assert recipes["experiments/interpolate.py"]["Config"]().num_pairs == 4


@pytest.mark.thorough
def test_the_recipes_hold(recipes, key, rng):
    recipes["tests/objectives_test.py"]["test_kde_descends_the_ratio_of_the_loops"](key, rng)

    def move(key, x):
        state = langevin.init(x, lambda x: -jnp.sum(x**2) / 2)
        return langevin.barker_step(key, state, lambda x: -jnp.sum(x**2) / 2, step_size=0.5)[0]

    draws = jnp.asarray(rng.normal(size=(20_000, 2)), jnp.float32)
    moved = jax.jit(jax.vmap(move))(jax.random.split(key, len(draws)), draws).position
    assert np.abs(oracles.moments_z(moved, np.eye(2))).max() < 5
    assert (moved != draws).mean() > 0.5


def test_the_direction_of_the_readme_runs():
    names = run("README.md", 1)
    assert abs(names["x"].mean(axis=0) - names["y"].mean(axis=0)).max() < 0.3


@pytest.mark.thorough
def test_the_readme_runs():
    names = run("README.md")
    y, params = names["y"], names["state"].params
    assert abs(params["shift"] - y.mean(axis=0)).max() < 0.3
    assert abs(params["scale"] - y.std(axis=0)).max() < 0.3


@pytest.mark.thorough
def test_the_library_page_runs(capsys):
    names = run("docs/library.md")
    assert capsys.readouterr().out.count("p_value=") == 8
    assert names["keep"].shape == (10,)


def _fits_its_data(data, samples, **_):
    assert abs(samples.mean(axis=0) - data.mean(axis=0)).max() < 0.15
    assert abs(samples.std(axis=0) - data.std(axis=0)).max() < 0.2


def _follows_the_posterior(error, outputs, **_):
    """By 500 draws of NUTS the error is 0.723, and the spread 0.112, which SVGD does not reach."""
    assert abs(error - 0.723) < 0.02
    assert 0.02 < outputs.std(axis=0).mean() < 0.112


def _classifies(loss, **_):
    assert loss < 0.08  # of scikit-learn's logistic regression


def _tells_the_prior(p_values, kept, **_):
    assert p_values[1.0] < 0.01 < p_values[2.0]
    assert kept["weights"].shape == (40, 6)


def _sees_noise(rates, **_):
    assert max(rates["median"][0], rates["fused"][0]) < 0.2  # none: 0.05 in truth, of 40 times
    assert rates["fused"][2] > rates["median"][2] + 0.4


def _selects_a_score(losses, errors, **_):
    assert min(losses, key=losses.get) == "Stein, selected"
    assert errors["Stein, selected"] < 0.8 * errors["Stein"]


def _weighs_the_shift(errors, **_):
    assert max(errors[name] for name in ("exact", "rulsif", "kmm")) < 0.1 * errors["none"]


EXAMPLES = [  # in the order of the page: what each needs, and what it is judged by
    ("flax.linen", _fits_its_data),
    ("flax.nnx", _fits_its_data),
    ("equinox", _fits_its_data),
    ("flax.linen", _follows_the_posterior),
    ("flax.nnx", _classifies),
    ("numpyro", _tells_the_prior),
    ("sklearn", _sees_noise),
    ("jax", _selects_a_score),
    ("jax", _weighs_the_shift),
]


def test_every_example_is_short():
    codes = blocks("docs/examples.md")
    assert len(codes) == len(EXAMPLES)
    assert all(len(code.splitlines()) <= 40 for code in codes)


@pytest.mark.thorough
@pytest.mark.parametrize("place", range(len(EXAMPLES)))
def test_an_example_does_its_job(place):
    library, judge = EXAMPLES[place]
    pytest.importorskip(library)
    names = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        exec(compile(blocks("docs/examples.md")[place], library, "exec"), names)  # noqa: S102
    judge(**names)


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
