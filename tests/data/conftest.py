"""What the tests of data share."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_folder import TSV, Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    folder.both(TSV)
    return folder
