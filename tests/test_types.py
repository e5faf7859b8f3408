"""What type checkers of users see: `make types` runs pyright over all of it; here is what tells them to look."""

from __future__ import annotations

from pathlib import Path

import ortholora

ROOT = Path(__file__).resolve().parent.parent


def test_the_type_checkers_are_told() -> None:
    """PEP 561; `pyproject.toml` puts the file into the wheel."""
    assert (ROOT / "src" / "ortholora" / "py.typed").is_file()
    assert '"py.typed"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_what_is_loaded_on_first_use_is_there_for_type_checkers() -> None:
    """They read the imports under `TYPE_CHECKING`; Python reads `_HOMES`."""
    source = Path(ortholora.__file__).read_text(encoding="utf-8")
    imported = source.partition("if TYPE_CHECKING:")[2].partition("\n\n\n")[0]
    names = {
        name.strip()
        for line in imported.splitlines()
        if " import " in line
        for name in line.split(" import ")[1].split(",")
    }
    assert names == set(ortholora._HOMES) == set(ortholora.__all__)
