"""The small files that make a folder a run: whose it is, and its configuration."""

from __future__ import annotations

import json
from pathlib import Path

from ortholora.config import Config
from ortholora.config_file import dump_config
from ortholora.errors import UserError

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"


def claim_folder(out: Path, fingerprint: str) -> None:
    """Make the folder this run's own, or check that it is.

    Raises:
        UserError: The folder holds a run with other settings or other data, or files of somebody else.
    """
    path = out / RUN_FILE
    if not path.is_file():
        _refuse_foreign(out)
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")
        return
    found = _read(path).get("fingerprint", "none")
    if found != fingerprint:
        raise UserError(
            f"{out} holds a run with other settings or other data",
            expected="an empty folder, or one that this very run was started in before",
            found=f"a run with fingerprint {found[:12]}, this one has {fingerprint[:12]}",
            todo="give another --out, or delete the folder",
        )


def describe(out: Path, fingerprint: str, config: Config, base: Path | None) -> None:
    """Keep the run's own configuration beside it, and where its data files are, for `evaluate`."""
    (out / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
    content = {"fingerprint": fingerprint, "data_base": str(base.resolve()) if base else None}
    (out / RUN_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def data_base(out: Path) -> Path:
    """The folder that the run's data files were relative to."""
    base = _read(out / RUN_FILE).get("data_base")
    return Path(base) if base else out


def _refuse_foreign(out: Path) -> None:
    """A run must not be mixed into a folder that holds something else; an unfinished start is fine."""
    if out.is_file():
        raise UserError(f"{out} is a file", expected="a folder", found="a file", todo="give another --out")
    for name in ("adapter_config.json", "summary.json", "config.json"):
        if (out / name).exists():
            raise UserError(
                f"{out} holds something else",
                expected="an empty folder, or one that this very run was started in before",
                found=f"{name}, but no {RUN_FILE}",
                todo="give another --out",
            )


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}
