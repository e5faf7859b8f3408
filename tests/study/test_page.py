"""The page: whole, the same for the same parts, and with nobody's markup but its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from html_reader import Reader
from ortholora.study.report.page import (
    Card,
    Cards,
    Cell,
    Commands,
    Folded,
    HeatMap,
    Key,
    Page,
    Panel,
    Panels,
    Paragraph,
    Section,
    Sentences,
    Table,
    render,
    write_page,
)
from ortholora.study.report.page import parts as parts_module
from ortholora.study.report.page.picture import COLOURS, short, svg

HOSTILE = """<script>alert("x")</script> 'a' & "b" </style> $x^2$ {{ 1 + 1 }}"""


def draw(axes: Axes) -> None:
    axes.plot([0, 1], [1, 2], marker="o", color=COLOURS["single"])
    axes.set_xlabel(HOSTILE)


def page(name: str = HOSTILE) -> Page:
    """A page with every kind of part, each with this name wherever it has text."""
    cells = {name: [(0.5, True), (-0.25, True), (0.1, False)], "n": [None] * 3}
    parts = [
        Paragraph(name, muted=True),
        Sentences([name]),
        Cards([Card(name, name, name)]),
        Table([name, name], [[name, Cell(f"{name}\n{name}", -1)], [name, Cell(name, 1)]], name, last_is_total=True),
        Panels([Panel(svg(draw, "0"), name, name)], [Key("■", "single", name)], name),
        HeatMap(name, {name: [name, "2"], "B": ["1"]}, cells),
        Commands([name]),
        Folded(name, [Sentences([name])]),
    ]
    return Page(name, name, [Section(name, parts, name)] * 3, name, [name])


def test_the_page_shows_every_kind_of_part() -> None:
    kinds = {cls.kind for cls in parts_module.Part.__subclasses__()}
    assert kinds == {part.kind for part in page().sections[0].parts}  # type: ignore[attr-defined]
    reader = Reader(render(page("a name")))
    assert reader.open == []
    tags = [tag for tag, _ in reader.tags]
    assert {"table", "svg", "pre", "details", "dl", "figure", "ul", "nav"} <= set(tags)
    text = " ".join(reader.words)
    assert {"+50", "−25", "+10", "–"} <= set(text.split())


def test_whatever_is_in_a_name_is_text() -> None:
    reader = Reader(render(page()))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert HOSTILE in " ".join(reader.words)
    assert not any(key.startswith("on") for _, attributes in reader.tags for key in attributes)
    assert reader.open == []


def test_names_of_layers_break_after_their_dots_and_numbers_do_not() -> None:
    text = render(page("0.attention.q_proj 0.5"))
    assert text.count('class="left">0.<wbr>attention.<wbr>q_proj 0.5</th>') >= 2  # of a table, and of a heat map


def test_no_script_and_nothing_from_elsewhere() -> None:
    text = render(page("a name"))
    assert "<script" not in text
    sources = re.findall(r'(?:src|href)="([^"]*)"|url\(([^)]*)\)|@import', text)
    assert sources
    assert all(own.startswith(("#", "data:")) for pair in sources for own in pair if own)
    assert all("http" not in value for value in re.findall(r'(?:src|href|action)="([^"]*)"', text))


def test_every_picture_has_words_and_its_colours_from_the_theme() -> None:
    reader = Reader(render(page("a name")))
    pictures = [attributes for tag, attributes in reader.tags if attributes.get("role") == "img"]
    assert pictures
    assert all(attributes["aria-label"] for attributes in pictures)
    drawn = svg(draw, "0")
    assert "var(--single)" in drawn
    assert COLOURS["single"] not in drawn
    assert not re.search(r"#(?!0{6})[0-9a-f]{6}\b(?!\))", re.sub(r'href="#[^"]*"|url\(#[^)]*\)', "", drawn))
    style = render(page("a name"))
    assert all(style.count(f"--{name}: #") == 2 for name in COLOURS)  # light and dark


def test_the_same_parts_give_the_same_bytes(tmp_path: Path) -> None:
    write_page(tmp_path / "a.html", page())
    write_page(tmp_path / "b.html", page())
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    # Markers and clips of two pictures are told apart by their key.
    ids = [set(re.findall(r' id="([^"]+)"', svg(draw, key))) for key in "01"]
    assert ids[0]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize(("name", "shown"), [("a" * 22, "a" * 22), ("a" * 200, "a" * 21 + "…")])
def test_long_names_fit_an_axis(name: str, shown: str) -> None:
    assert short(name) == shown
