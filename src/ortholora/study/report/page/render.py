"""Write a page as one HTML file."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ortholora.files import write_text
from ortholora.study.report.page.parts import Page

_CODE = re.compile("`([^`]+)`")
#: A dot between the parts of a name; no decimal point.
_DOT = re.compile(r"(?<=\w)([.])(?=[A-Za-z])")


def write_page(path: Path, page: Page) -> None:
    """Write a page, whole or not at all.

    Args:
        path: The HTML file; its folder must exist.
        page: The page.
    """
    write_text(path, render(page))


def render(page: Page) -> str:
    """The page as HTML. The same page gives the same text."""
    return _environment().get_template("page.html.j2").render(page=page)


@cache
def _environment() -> Environment:
    # Autoescape: names of tasks, paths and settings come from files of any origin.
    environment = Environment(
        loader=PackageLoader("ortholora.study.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": _breakable, "heat": _heat, "prose": _prose}
    return environment


def _prose(text: str) -> Markup:
    """A sentence: what stands between backticks is code, and no line ends before a percent sign."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text)).replace(" %", "\u00a0%")))


def _breakable(name: object) -> Markup:
    """A name of several parts, such as that of a layer: where there is no room it breaks after a dot."""
    return Markup(_DOT.sub(r"\1<wbr>", str(escape(name))))


def _heat(value: float, full: float) -> str:
    """How strong a cell's colour is, in percent."""
    return f"{100 * min(1.0, abs(value) / full) if full else 0:.0f}"
