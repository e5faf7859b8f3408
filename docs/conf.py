"""How `make docs` turns the Markdown of this repository into a site: Sphinx with MyST, strict and without a network.

The source folder is the whole repository, not `docs/`. So a relative link is the same on the site, on a code host and
in an editor: `../benchmarks/results/demo/summary.md` is a page of the site, too, and a script or a configuration file
that a page links to is copied beside it. Nothing is rewritten, and a link to a file that is not there fails the build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ortholora.version import __version__

project, version, release = "Ortho-LoRA", __version__, __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

root_doc = "README"
PROJECT = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md"]
include_patterns = [*PROJECT, "docs/**.md", "benchmarks/results/**.md", "benchmarks/gaps/**.md"]
exclude_patterns = [".*", "docs/_build", "build", "dist", "runs", "demo-run", "src", "tests"]

#: No page can hold its own contents: everywhere but here they would be a block of code.
CONTENTS = """
```{{toctree}}
:hidden:
:caption: {caption}

{pages}
```
"""
PAGES = {
    "Use": [
        "docs/init",
        "docs/check",
        "docs/diagnose",
        "docs/compare",
        "docs/report",
        "docs/configuration",
        "docs/training",
        "docs/serving",
        "docs/scripts",
        "docs/language-models",
        "docs/trainers",
        "docs/rules",
    ],
    "Look up": [
        "docs/package",
        "docs/api",
        "docs/every-lora",
        "docs/every-model",
        "docs/scaling",
        "docs/versions",
        "docs/security",
        "docs/comparison",
    ],
    "Results": ["benchmarks/gaps/README", "docs/performance", "docs/performance-method", "benchmarks/results/README"],
    "Project": ["docs/architecture", "CONTRIBUTING", "CHANGELOG", "LOG"],
}

# ---- Markdown ---------------------------------------------------------------------------------------------------

myst_heading_anchors = 4  # `page.md#a-heading`, as code hosts make them
myst_enable_extensions = ["dollarmath"]
suppress_warnings = [
    "toc.not_included",  # result pages are reached by links
    "misc.highlighting_failure",  # `loss = ...` and `…` in examples
]

# ---- The reference, out of the docstrings -----------------------------------------------------------------------

default_role = "code"  # docstrings write `x`, as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
nitpicky = True
#: No network, so no page of another project can be looked up; names of our own that are not public have none.
nitpick_ignore_regex = [("py:.*", r"(?!ortholora\.\w+$).*")]

# ---- The page's looks: the theme brings its own style and no fonts ------------------------------------------------

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = html_show_sourcelink = False
html_show_copyright = False


def add_contents(app: Any, page: str, source: list[str]) -> None:
    """Give the README and the overview of the rules a table of contents; pages that nobody listed come last."""
    rules = sorted(name for name in app.env.found_docs if name.startswith("docs/rules/"))
    if page == "docs/rules":
        source[0] += contents("The rules", rules)
    if page == root_doc:
        listed = {*rules, *(name for names in PAGES.values() for name in names)}
        rest = sorted(name for name in app.env.found_docs if name.startswith("docs/") and name not in listed)
        for caption, names in {**PAGES, "More": rest}.items():
            source[0] += contents(caption, names)


def contents(caption: str, names: list[str]) -> str:
    """A hidden table of contents, for the theme's side bar."""
    return CONTENTS.format(caption=caption, pages="\n".join(f"/{name}" for name in names)) if names else ""


def add_index(app: Any, error: Exception | None) -> None:
    """A browser that opens the folder is sent to the README."""
    if error is None:
        page = (
            '<!doctype html><meta http-equiv="refresh" content="0; url=README.html"><a href="README.html">README</a>\n'
        )
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def keep_colons(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Before a colon Napoleon sees a type, where a property or a result is described; here it is text."""
    firsts = [0] if what == "property" else []
    firsts += [index + 1 for index, line in enumerate(lines[:-1]) if line.strip() == "Returns:"]
    for index in firsts:
        lines[index] = re.sub(r":( |$)", r" –\1", lines[index])


def show_examples(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Turn a fenced block of code in a docstring into what reStructuredText calls one."""
    inside = False
    for index, line in enumerate(lines):
        if line.lstrip().startswith("```"):
            inside = not inside
            indent = line[: len(line) - len(line.lstrip())]
            lines[index] = f"{indent}.. code-block:: {line.strip(' `') or 'python'}\n" if inside else ""
        elif inside:
            lines[index] = f"    {line}"
    lines[:] = "\n".join(lines).split("\n")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # before Napoleon
    app.connect("autodoc-process-docstring", show_examples)
    app.connect("source-read", add_contents)
    app.connect("build-finished", add_index)
