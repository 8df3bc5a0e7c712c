"""The files of runs in a folder of facts."""

from __future__ import annotations

import re


def events_name(index: int, spec: str) -> str:
    """The file of a run's facts: `2-tokencake-upload-demand.jsonl` of `tokencake:upload=demand`, asked for second."""
    safe = re.sub(r"[^A-Za-z0-9._]+", "-", spec).strip("-.")
    return f"{index + 1}-{safe[:100]}.jsonl"
