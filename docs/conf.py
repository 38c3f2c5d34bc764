"""The site, by `make docs`: its pages are files of the checkout, and read well where they lie."""

import inspect
import re
from typing import Any

import kernelgrad

project = "kernelgrad"
author = "The kernelgrad authors"
project_copyright = author
release = version = kernelgrad.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "BUILD_NOTES.md", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = ["build", "runs", ".*"]
highlight_language = "none"  # of indented blocks: commands and formulas

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "force"  # a page that has not changed is not read again
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Cost"]
napoleon_attr_annotations = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
copybutton_prompt_is_regexp = True
copybutton_prompt_text = r">>> |\.\.\. "  # of an example its input alone is copied
nitpick_ignore_regex = [("py:(class|obj|data|exc)", ".*")]  # types of signatures, of JAX and others

html_theme = "furo"
html_title = f"kernelgrad {release}"
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["front"]  # index.html of the site: to that of the pages


def belongs(room: str, name: str, value: Any) -> bool:
    """Tells whether a name is public in a room: made there, or in a private one for it."""
    home = getattr(value, "__module__", None) or ""
    made = inspect.isfunction(value) or inspect.isclass(value)
    private = home.startswith("kernelgrad._") and home != "kernelgrad._distances"
    return made and not name.startswith("_") and (home == room or private)


def skip(app: Any, what: str, name: str, value: Any, skipped: bool, options: Any) -> bool:
    """Leaves out what a room has imported from others, and fields, which classes describe."""
    if what == "module":
        return skipped or not belongs(app.env.current_document.autodoc_module, name, value)
    return skipped or not inspect.isfunction(value)


def section_cost(
    app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Makes a section of "Cost: ...", as napoleon knows them."""
    for place, line in enumerate(lines):
        if line.startswith("Cost: "):
            lines[place : place + 1] = ["Cost:", "  " + line.removeprefix("Cost: ")]


def letters(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Keeps a description that is one letter, "kernel: k.", from becoming a numbered list."""
    lines[:] = [re.sub(r"^(\s*:[\w ]+: \w)\.", r"\1\\.", line) for line in lines]


def within(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Finds what a docstring names from within the package, such as :func:`ratio.lsif`."""
    if node.get("refdomain") != "py" or node["reftarget"].startswith("kernelgrad."):
        return None
    target = f"kernelgrad.{node['reftarget']}"
    find = env.get_domain("py").resolve_xref
    return find(env, node["refdoc"], app.builder, node["reftype"], target, node, content)


def bar(_: Any, match: re.Match[str], __: int) -> tuple[str, list[Any], str, list[Any]]:
    """Reads a bar as itself: in docstrings it is that of a norm, not of a substitution."""
    end = match.end("start")
    return match.string[:end], [], match.string[end:], []


def setup(app: Any) -> None:
    """Connects the above."""
    from docutils.parsers.rst.states import Inliner

    Inliner.dispatch["|"] = bar
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", section_cost, priority=400)
    app.connect("autodoc-process-docstring", letters, priority=600)
    app.connect("missing-reference", within)
