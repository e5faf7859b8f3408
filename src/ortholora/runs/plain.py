"""Values as plain JSON: numpy scalars become Python's, NaN and infinities become null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Return the value with dicts, lists, strings, bools, ints, finite floats and None only.

    Raises:
        TypeError: A value of another type; the caller is to say what it means as text.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} is not plain data: {value!r}")


def to_json(value: Any) -> bytes:
    """Return the value as indented UTF-8 JSON with a final newline, strictly by the standard (no NaN)."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")
