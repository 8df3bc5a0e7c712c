"""Figures as CSV, for spreadsheets and for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from ..files.escaping import for_csv


def csv_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A line of columns, then a line a row; what is None is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(for_csv, columns))
    writer.writerows(map(for_csv, row) for row in rows)
    return text.getvalue()
