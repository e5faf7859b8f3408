"""The page in a real browser: nothing is loaded, nothing overflows a phone, and it can be read in the dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ortholora.study.diagnose.write import write_diagnosis
from ortholora.study.report.door import report_on
from stored_diagnosis import diagnosis
from stored_study import write_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="needs the [browser] extra")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, `apt-get install chromium`")

SIZES = {"phone": (360, 740), "desk": (1200, 900)}
#: The least contrast of every element with text of its own, against what is painted behind it (WCAG 2).
CONTRAST = """() => {
  const parse = text => {
    const n = (text.match(/-?[\\d.]+/g) || []).map(Number);
    const rgb = text.startsWith('color(') ? n.slice(0, 3) : n.slice(0, 3).map(v => v / 255);
    return [rgb, n.length > 3 ? n[3] : 1];
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const [rgb, alpha] = parse(getComputedStyle(e).backgroundColor);
      if (alpha > 0.99) return rgb;
    }
    return [1, 1, 1];
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest('.mark')) continue;
    const style = getComputedStyle(e);
    const text = light(parse(e.closest('svg') ? style.fill : style.color)[0]);
    const back = light(behind(e));
    found.push([(Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05), e.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a study, that of two, and that of a diagnosis."""
    home = tmp_path_factory.mktemp("pages")
    write_study(home / "one", tasks=5, rows=300, seeds=2)
    write_study(home / "two", rows=300, seeds=2, tasks=2)
    (home / "diagnosis").mkdir()
    write_diagnosis(home / "diagnosis", diagnosis(["loud", "contrary", "calm", "n" * 200], change=-0.02))
    return {
        "study": report_on([home / "one"]),
        "ledger": report_on([home / "one", home / "two"], home / "both.html"),
        "diagnosis": home / "diagnosis" / "report.html",
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("name", ["study", "ledger", "diagnosis"])
def test_in_a_browser(pages: dict[str, Path], browser: Any, name: str, size: str, scheme: str) -> None:
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name].as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    pictures = page.evaluate("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)")
    assert len(pictures) == {"study": 2 + 1 + 2 * 5 + 6 + 1, "ledger": 2, "diagnosis": 4}[name]
    assert min(pictures) > 200
    assert page.evaluate("[...document.querySelectorAll('[role=img]')].every(e => e.getAttribute('aria-label'))")
    contrasts = page.evaluate(CONTRAST)
    assert len(contrasts) > 50
    assert min(contrasts)[0] >= 4.5, sorted(contrasts)[:5]
    dark = sum(float(n) for n in page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)")) < 300
    assert dark == (scheme == "dark")
    page.close()


def test_it_can_be_printed(pages: dict[str, Path], browser: Any) -> None:
    paper = 718  # A4 between Chromium's margins
    page = browser.new_page(color_scheme="dark", viewport={"width": paper, "height": 1000})
    page.emulate_media(media="print")
    for path in pages.values():
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= paper
    page.goto(pages["study"].as_uri())
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(254, 254, 254)"
    heights = page.evaluate(
        "[...document.querySelectorAll('details .inside')].map(e => e.getBoundingClientRect().height)"
    )
    assert heights
    assert min(heights) > 20  # what is folded away on a screen is on paper
    assert page.pdf().startswith(b"%PDF")
    page.close()
