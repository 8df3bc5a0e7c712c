"""A trace that a command makes: written while people see how far it is, and told of at the end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..apps import Application
from ..console.progress import progress_bar, watched
from ..console.terminal import say
from ..files.outputs import check_outputs, outputs_of
from .header import Header
from .writer import write_trace


def publish_trace(
    output: Path,
    applications: Iterable[Application],
    header: Header,
    *,
    source: Path | None = None,
    progress: bool = False,
) -> None:
    """Write the trace, and say how many applications it has: on stderr if the trace goes to standard output.

    `source` is what it is made of, which must be another file; `progress`: shown even if stderr is no terminal.
    Raises TokencakeError if the file cannot be written, before anything is read, and whatever `applications` raise.
    """
    outputs = outputs_of(output=output)
    check_outputs(outputs, [] if source is None else [source])
    with progress_bar(progress) as bar:
        written = write_trace(output, watched(applications, bar, "writing", header.applications), header)
    to_data = outputs[0].is_standard
    say(f"{output}: {written:,} application{'' if written == 1 else 's'}", err=to_data)
