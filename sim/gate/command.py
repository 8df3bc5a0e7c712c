"""`tokencake check`: what its options ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from ...traces.console.printing import printing
from ...traces.console.terminal import say
from ...traces.errors import TokencakeError
from ...traces.files.json_file import json_text
from ...traces.files.outputs import Output, check_apart, check_outputs, write_whole
from ...traces.files.whole_file import STANDARD_OUTPUT
from ..machine.files import inputs_of
from .baseline import baseline_file, decisions_file
from .check import Progress, check_suite
from .formats.github import github
from .formats.junit import junit
from .formats.markdown import markdown
from .formats.report import report_of
from .formats.text import plain_text, print_text
from .suite.suite import Suite
from .suite.suite_file import find_suite, load_suite
from .update import update_suite

FILE_WIDTH = 120  # characters of a line in a file
TEXT = "text"


def _text(report: Mapping[str, Any]) -> str:
    return plain_text(report, FILE_WIDTH)


FORMATS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    TEXT: _text,
    "github": github,
    "junit": junit,
    "markdown": markdown,
    "json": json_text,
}


class CheckOptions(NamedTuple):
    """As they are given. Each output file belongs to the format at its place; formats without one are printed."""

    suite: Path | None = None
    cases: tuple[str, ...] = ()
    update: bool = False
    strict: bool = False
    formats: tuple[str, ...] = ()
    outputs: tuple[Path, ...] = ()
    workers: int | None = None
    policy_timeout: float | None = None


def suite_of(options: CheckOptions) -> Suite:
    """The cases that are asked for. Raises TokencakeError for a suite file that is wrong, or not there."""
    suite = load_suite(options.suite or find_suite(Path())).only(options.cases)
    return suite if options.policy_timeout is None else replace(suite, policy_timeout_s=options.policy_timeout)


def run_check(options: CheckOptions, progress: Progress) -> int:
    """Check, or write new baselines: the exit code, 1 if the check fails. Raises TokencakeError for bad input."""
    suite = suite_of(options)
    files = checked_files(options, suite)
    if options.update:
        for line in update_suite(suite, options.workers, progress):
            say(line)
        return 0
    check = check_suite(suite, strict=options.strict, workers=options.workers, progress=progress)
    report = report_of(check)
    publish(report, files)
    return 0 if check.good else 1


def checked_files(options: CheckOptions, suite: Suite) -> list[tuple[str, Path | None]]:
    """Each format, with the file that it goes to. Raises TokencakeError if one cannot be written, or is an input."""
    files = list(_files(options))
    outputs = [Output("-o", file) for _, file in files if file is not None]
    check_apart([*outputs, *_baselines(suite)], _inputs(suite))
    check_outputs(outputs)
    return files


def _baselines(suite: Suite) -> list[Output]:
    """What `--update` writes, and a check reads."""
    files = [file for case in suite.cases for file in (baseline_file(suite, case), decisions_file(suite, case))]
    return [Output("baselines", file) for file in files]


def _inputs(suite: Suite) -> list[Path]:
    paths = suite.paths
    files: list[Path | None] = [suite.file]
    for case in suite.cases:
        files += [paths.path(case.trace), paths.machine_file(case.machine)]
        files += [paths.policy_file(policy) for policy in (case.policy, *case.rivals)]
    return inputs_of(*files)


def _files(options: CheckOptions) -> Iterator[tuple[str, Path | None]]:
    """Each format, with the file that it goes to."""
    formats = options.formats or (TEXT,)
    if len(options.outputs) > len(formats):
        raise TokencakeError(f"-o {options.outputs[len(formats)]}: expected a --format for each -o")
    files = [None if str(file) == STANDARD_OUTPUT else file for file in options.outputs]
    yield from zip_longest(formats, files)


def publish(report: Mapping[str, Any], files: list[tuple[str, Path | None]]) -> None:
    """Each format to where it goes. If all go to files, people get the text."""
    try:
        for name, file in files:
            if file is not None:
                write_whole(file, FORMATS[name](report))
    finally:  # a disk that is full keeps nobody from seeing the results
        printed = [name for name, file in files if file is None] or [TEXT]
        for name in printed:
            _print(name, report)


def _print(name: str, report: Mapping[str, Any]) -> None:
    if name == TEXT:
        print_text(report, printing())
    else:
        write_whole(STANDARD_OUTPUT, FORMATS[name](report))
