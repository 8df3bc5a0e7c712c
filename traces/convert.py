"""Traces that others recorded, as applications: one function, and one row a format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .apps import Application
from .arrivals import ArrivalProcess, retime
from .convert_agentic_coding import from_agentic_coding
from .convert_azure import from_azure
from .convert_mooncake import from_mooncake
from .errors import TraceError

FORMATS: Mapping[str, Callable[[Path], Iterator[Application]]] = {
    "agentic-coding": from_agentic_coding,
    "mooncake": from_mooncake,
    "azure": from_azure,
}

# Recordings that say nothing about when conversations begin get one a minute. A conversation of the public coding
# traces keeps its model busy for 433 s on average, so about 7 calls are then in flight.
DEFAULT_RATES: Mapping[str, float] = {"agentic-coding": 1 / 60}


def convert(
    path: str | Path,
    source_format: str,
    rate: float | None = None,
    arrivals: ArrivalProcess = "even",
    seed: int = 0,
) -> Iterator[Application]:
    """The applications of a recorded trace, in order of arrival, as a stream.

    `source_format` is a key of `FORMATS`. With a `rate` (applications a second) they arrive evenly or as a Poisson
    process instead of as recorded; coding conversations, whose starts were not recorded, arrive at `DEFAULT_RATES`.

    Raises TraceError, also while the result is consumed: it names the file, the line or entry, the field, and what was
    expected there.
    """
    if source_format not in FORMATS:
        raise TraceError(f"unknown trace format {source_format!r}: expected one of {', '.join(FORMATS)}")
    applications = FORMATS[source_format](Path(path))
    rate = DEFAULT_RATES.get(source_format) if rate is None else rate
    return applications if rate is None else retime(applications, rate, arrivals, seed)
