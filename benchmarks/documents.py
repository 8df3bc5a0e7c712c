"""Documents whose tables benchmarks write."""

from __future__ import annotations

from pathlib import Path

from tokencake.traces.errors import TraceError
from tokencake.traces.files.input_limits import LINE_BYTES
from tokencake.traces.files.source_file import whole


def text_of(document: Path) -> str:
    """What it says. Raises `TraceError` if it cannot be read, or is no text."""
    try:
        return whole(document, LINE_BYTES).decode()
    except UnicodeDecodeError:
        raise TraceError(f"{document}: expected text in UTF-8") from None
