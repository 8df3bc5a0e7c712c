"""Results go to the files that are asked for, whole or not at all, and to people unless standard output is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ...console.terminal import say
from ...files.json_file import json_text
from ...files.outputs import check_outputs, events_outputs, outputs_of, prepare_folder, write_whole
from ...files.whole_file import STANDARD_OUTPUT
from ..run_files import events_name

if TYPE_CHECKING:
    from rich.console import RenderableType

Tables: TypeAlias = "Callable[[int], RenderableType]"  # tables in so many columns of characters


def publish(files: Iterable[tuple[str | Path | None, Callable[[], str]]], show: Callable[[], None]) -> None:
    """Write each text to its file, if it has one, and `show` the results unless one of them is standard output.

    Raises TokencakeError for a file that cannot be written, after the rest.
    """
    wanted = [(file, text) for file, text in files if file is not None]
    try:
        for file, text in wanted:
            write_whole(file, text())
    finally:  # a disk that is full keeps nobody from seeing the results
        if STANDARD_OUTPUT not in [str(file) for file, _ in wanted]:
            show()


def show(lines: Iterable[str], tables: Tables | None = None) -> None:
    """Print tables, as wide as there is room, and what follows from them in lines."""
    if tables is not None:
        from ...console.printing import printing  # loads rich, which nothing else needs

        console = printing()
        console.print(tables(console.width))
    for line in lines:
        say(line)


class Outputs(NamedTuple):
    """Where the report of a command goes, and the facts of its runs."""

    json_file: str | None = None
    csv_file: str | None = None
    events: Path | None = None  # a folder, of a file a run
    quiet: bool = False  # whether people get lines alone, and no tables

    def check(self, inputs: Sequence[Path], policies: Sequence[str] = ()) -> None:
        """Finds what cannot be written before the work is done. `policies`: one for each run with `events`."""
        outputs = outputs_of(json=self.json_file, csv=self.csv_file)
        if self.events:
            prepare_folder(self.events)
            outputs += events_outputs(self.events, map(events_name, range(len(policies)), policies))
        check_outputs(outputs, inputs)

    def events_file(self, index: int, spec: str) -> Path | None:
        """The file of the facts of run `index`, from 0."""
        return self.events / events_name(index, spec) if self.events else None

    def publish(
        self,
        report: Mapping[str, Any],
        lines: Iterable[str],
        tables: Tables | None = None,
        csv_text: Callable[[], str] | None = None,
    ) -> None:
        """As the function `publish`: the report as JSON and as `csv_text`; or else `tables`, unless quiet, and `lines`.

        Without `csv_text` there is nothing to be written as CSV.
        """
        files: list[tuple[str | Path | None, Callable[[], str]]] = [(self.json_file, lambda: json_text(report))]
        if csv_text is not None:
            files.append((self.csv_file, csv_text))
        publish(files, lambda: show(lines, None if self.quiet else tables))
