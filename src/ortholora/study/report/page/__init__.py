"""A page of HTML out of sections: one file, no network, no script. Who has something to show fills in the sections.

```python
page = Page("What it found", "in one sentence", [Section("The answer", [Sentences(["Use `ortho`."])])])
write_page(folder / "report.html", page)
```
"""

from ortholora.study.report.page.parts import Card as Card
from ortholora.study.report.page.parts import Cards as Cards
from ortholora.study.report.page.parts import Cell as Cell
from ortholora.study.report.page.parts import Commands as Commands
from ortholora.study.report.page.parts import Folded as Folded
from ortholora.study.report.page.parts import HeatMap as HeatMap
from ortholora.study.report.page.parts import Key as Key
from ortholora.study.report.page.parts import Page as Page
from ortholora.study.report.page.parts import Panel as Panel
from ortholora.study.report.page.parts import Panels as Panels
from ortholora.study.report.page.parts import Paragraph as Paragraph
from ortholora.study.report.page.parts import Part as Part
from ortholora.study.report.page.parts import Section as Section
from ortholora.study.report.page.parts import Sentences as Sentences
from ortholora.study.report.page.parts import Table as Table
from ortholora.study.report.page.render import render as render
from ortholora.study.report.page.render import write_page as write_page
