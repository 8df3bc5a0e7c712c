"""`tokencake trace generate`: a workload that is made here, written as a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..apps import Application
from ..format.header import Header
from ..format.publish_trace import publish_trace
from .arrivals import ArrivalOptions
from .workloads import code_writer, deep_research


class Generator(NamedTuple):
    """A workload that has a name."""

    make: Callable[..., Iterator[Application]]
    rate: float  # applications a second, if nobody asks for another


GENERATORS: Mapping[str, Generator] = {
    "code-writer": Generator(code_writer, 1.0),
    "deep-research": Generator(deep_research, 0.1),
}


def generate_trace(
    workload: str,
    output: Path,
    apps: int,
    arrivals: ArrivalOptions,
    progress: bool = False,
) -> None:
    """Write `apps` applications of a workload of `GENERATORS`. Errors as `publish_trace`.

    `progress`: shown even if stderr is no terminal.
    """
    generator, (rate, process, seed) = GENERATORS[workload], arrivals
    rate = generator.rate if rate is None else rate
    applications = generator.make(apps=apps, qps=rate, arrivals=process, seed=seed)
    about = {"qps": rate, "arrivals": process, "seed": seed}
    header = Header(name=workload, source="tokencake trace generate", applications=apps, about=about)
    publish_trace(output, applications, header, progress=progress)
