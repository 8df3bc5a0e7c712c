"""Documents and the files of results that they quote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def result(name: str) -> Any:
    """A file of results."""
    return json.loads((RESULTS / name).read_text("utf-8"))


def page(name: str) -> str:
    """A document with single spaces, so that lines may be broken elsewhere."""
    return " ".join((ROOT / name).read_text("utf-8").split())


def percent(share: float) -> str:
    """A change as documents show it, without the sign of per cent."""
    return f"{100 * share:+.1f}".replace("-", "−")
