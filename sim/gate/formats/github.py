"""A check's report as annotations of a GitHub workflow: a line each, which the runner reads from the log."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ....traces.files.escaping import for_annotation, for_annotation_property
from .words import budget, details, findings, headline, missing_file, sentence, summary


def github(report: Mapping[str, Any]) -> str:
    """`::error file=…::…` for what fails, `::warning` and `::notice` for what is to be known, and a line for all."""
    return "".join(f"{line}\n" for line in _lines(report))


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    file = _from_here(report["suite"])
    for case in report["cases"]:
        if case["state"] != "good" or missing_file(case):
            yield _annotation(file, case)
    if over := budget(report):
        yield f"::error file={for_annotation_property(file)},title=tokencake check::{for_annotation(over)}"
    yield headline(report)


def _annotation(file: str, case: Mapping[str, Any]) -> str:
    kind = "error" if case["fails"] else "warning" if case["state"] == "uncertain" else "notice"
    title = f"tokencake check: {case['name']} {case['state']}"
    told = [sentence(one) for one in findings(case)] or [summary(case)]
    causes = [f"cause: {cause}" for cause in case["causes"]]
    message = "\n".join([*causes, *told, *details(case)[len(causes) :]])
    place = f"file={for_annotation_property(file)},line={case['line']}"
    return f"::{kind} {place},title={for_annotation_property(title)}::{for_annotation(message)}"


def _from_here(file: str) -> str:
    """The path as the repository's root knows it: a workflow runs there."""
    path = Path(file)
    return os.path.relpath(path).replace(os.sep, "/") if path.is_absolute() else path.as_posix()
