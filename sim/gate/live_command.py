"""`tokencake check --live`: what its options ask for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

from ...policies.foreign_code import supervise_foreign
from ...policies.runs.playable import Playable
from ...traces.console.progress import Bar
from ...traces.console.terminal import say
from ...traces.errors import TokencakeError
from ...traces.files.outputs import write_whole
from ...traces.files.whole_file import STANDARD_OUTPUT
from ...traces.results.reports.report import Run
from .both_sides import play_both_sides
from .command import TEXT, CheckOptions, checked_files, suite_of
from .live_verdict import (
    MissingVerdict,
    TwoSidedVerdict,
    as_record,
    compare_sides,
    cut_off_words,
    fails,
    live_cases,
    live_policies,
    words,
)
from .suite.suite import Case, Suite
from .suite.suite_file import LIVE_KEYS

JSON = "json"
Start: TypeAlias = Callable[[Mapping[str, Any], int], AbstractContextManager[Playable]]  # from options and a seed


def run_check_live(options: CheckOptions, start: Start, bar: Bar) -> int:
    """Play the suite's live cases on both sides, each on an engine of its own, which `start` gives.

    Returns the exit code: 1 if simulator and engine say opposite things about who is better. Raises TokencakeError for
    bad input.
    """
    if set(options.formats) - {TEXT, JSON}:
        raise TokencakeError("--live: expected --format text or json")
    suite = suite_of(options)
    cases = live_cases(suite)
    results = _Results(suite, dict(checked_files(options, suite)))
    supervise_foreign([policy for case in cases for policy in live_policies(case)])
    for case in cases:
        wanted = {key: value for key, value in (case.live or {}).items() if key in LIVE_KEYS}
        ended: list[Run] = []
        try:
            with start(wanted, case.seed) as engine:
                results.engines[case.name] = engine.info()
                sides = play_both_sides(suite, case, engine, bar=bar, cut_off=ended.append)
        except BaseException:
            for run in ended:
                results.add_cut_off(case, run)
                results.write()
            raise
        results.add(case, compare_sides(case, *sides, suite.confidence))
    results.write()
    return 1 if any(fails(compared, options.strict) for compared in results.found.values()) else 0


class _Results:
    """What is known of the cases so far: in lines that are said at once, and in files at the end."""

    def __init__(self, suite: Suite, files: Mapping[str, Path | None]) -> None:
        self._suite = suite
        self._files = files  # by format; None: standard output
        self.found: dict[str, Sequence[TwoSidedVerdict | MissingVerdict]] = {}
        self.engines: dict[str, object] = {}
        self._cut_off: dict[str, dict[str, Any]] = {}  # of the case that something ended early, the run in which it did
        self._lines: list[str] = []

    def add(self, case: Case, compared: Sequence[TwoSidedVerdict | MissingVerdict]) -> None:
        self.found[case.name] = compared
        self._say(words(case.name, case.policy, compared))

    def add_cut_off(self, case: Case, run: Run) -> None:
        self._cut_off[case.name] = run.record()
        self._say([cut_off_words(case.name, self._cut_off[case.name])])

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._lines.append(line)
            if JSON not in self._files or self._files[JSON] is not None:
                say(line)

    def write(self) -> None:
        if JSON in self._files:
            record = as_record(self._suite, self.found, self.engines, self._cut_off)
            write_whole(self._files[JSON] or STANDARD_OUTPUT, json.dumps(record, indent=2, default=str) + "\n")
        if (text_file := self._files.get(TEXT)) is not None:
            write_whole(text_file, "".join(f"{line}\n" for line in self._lines))
