"""What a page can hold: plain data, each kind with a macro of its name in `templates/parts.html.j2`.

All text is escaped when it is written; only a panel's picture is taken as it is, and that comes from `picture.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal


class Part:
    """Something in a section. `kind` is the name of its macro."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Paragraph(Part):
    """One paragraph; `muted` for what is beside the point."""

    kind = "paragraph"
    text: str
    muted: bool = False


@dataclass(frozen=True)
class Sentences(Part):
    """A list of sentences."""

    kind = "sentences"
    lines: Sequence[str]


@dataclass(frozen=True)
class Card:
    """A figure that is to be seen first.

    Attributes:
        label: What it is.
        value: The figure, or a name.
        note: What belongs to it, in a sentence.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Cards(Part):
    """A row of cards."""

    kind = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than its text.

    Attributes:
        text: The text; a new line starts a second, smaller one.
        sign: 1 for surely better, -1 for surely worse: marked by colour, weight and an arrow.
    """

    text: str
    sign: int = 0


@dataclass(frozen=True)
class Table(Part):
    """A table.

    Attributes:
        header: Names of the columns.
        rows: Rows of cells.
        caption: What it shows.
        left: Number of columns that are aligned left; the others are numbers.
        last_is_total: Whether the last row sums up the others.
    """

    kind = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""
    left: int = 1
    last_is_total: bool = False


@dataclass(frozen=True)
class Panel:
    """One small picture.

    Attributes:
        svg: What `picture.svg` returned; not escaped.
        alt: What it shows, in words, for those who cannot see it.
        title: Its heading.
    """

    svg: str
    alt: str
    title: str = ""


@dataclass(frozen=True)
class Key:
    """What a colour and a mark stand for.

    Attributes:
        mark: The mark as a character.
        colour: Name of the colour (`picture.COLOURS`).
        text: What it stands for.
    """

    mark: str
    colour: str
    text: str


@dataclass(frozen=True)
class Panels(Part):
    """Pictures side by side, as many as fit; one below the other on a phone."""

    kind = "panels"
    panels: Sequence[Panel]
    keys: Sequence[Key] = ()
    caption: str = ""


@dataclass(frozen=True)
class HeatMap(Part):
    """A table whose cells are coloured by their sign and size; what is not sure is grey.

    Attributes:
        caption: What it shows.
        groups: Name of a group of columns → the names of its columns.
        rows: Name of the row → its cells, over all columns: value, and whether its sign is sure. None: not measured.
        full: The size of a value with the strongest colour.
        form: `signed` writes values in hundredths, with their sign; `times` reads them as logarithms to base 2, and
            writes ratios.
    """

    kind = "heatmap"
    caption: str
    groups: Mapping[str, Sequence[str]]
    rows: Mapping[str, Sequence[tuple[float, bool] | None]]
    full: float = 1.0
    form: Literal["signed", "times"] = "signed"

    def text(self, value: float) -> str:
        """How a value is written."""
        if self.form == "times":
            return f"{2**value:.2g}×"
        return f"{100 * value:+.0f}".replace("-", "−").replace("+0", "0").replace("−0", "0")


@dataclass(frozen=True)
class Commands(Part):
    """Lines to paste into a terminal."""

    kind = "commands"
    lines: Sequence[str]


@dataclass(frozen=True)
class Folded(Part):
    """Parts that are shown on request."""

    kind = "folded"
    summary: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading.

    Attributes:
        title: The heading; also in the page's contents.
        parts: What it holds.
        lead: What to look for, in one or two sentences.
    """

    title: str
    parts: Sequence[Part]
    lead: str = ""


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: Its heading.
        lead: The answer, in one sentence.
        sections: Its sections.
        footer: Where it comes from.
        warnings: What is missing, or to be careful about, before all else.
        context: What the page is about, in a line above its heading.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    footer: str = ""
    warnings: Sequence[str] = field(default=())
    context: str = ""
