"""A file that is one JSON value: a report, a baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TokencakeError, TraceError
from .fields import WrongField
from .input_limits import LINE_BYTES
from .schema import Check, T
from .source_file import whole
from .strict_json import strict_json


def json_text(report: Mapping[str, Any]) -> str:
    """A report as it is written: with line breaks, and without numbers that JSON has not."""
    return json.dumps(report, indent=2, allow_nan=False) + "\n"


def read_json(path: Path, check: Check[T], kind: type[TokencakeError] = TraceError) -> T:
    """What the file holds, checked. Raises an error of this kind, in one line: the file, the place in it, what was
    expected there.
    """
    try:
        return check(strict_json(whole(path, LINE_BYTES, kind)), "")
    except WrongField as wrong:
        raise kind(f"{path}: {wrong}") from None
