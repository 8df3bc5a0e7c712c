"""When applications arrive: evenly spaced, or as a Poisson process."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Literal, NamedTuple

from ..apps import Application
from ..errors import TraceError
from ..files.fields import MAX_SECONDS

ArrivalProcess = Literal["even", "poisson"]

LEAST_RATE, MOST_RATE = 1e-6, 1e6  # applications a second: one in twelve days is no load, and a million no client's

_PROCESSES = ("even", "poisson")
_TICKS_PER_S = 1e6  # drawn times are whole microseconds: short in a file, and the same with any C library's logarithm


class ArrivalOptions(NamedTuple):
    """When applications arrive, as it is asked for."""

    rate: float | None = None  # applications a second; None: as they were recorded, or are made
    process: ArrivalProcess = "even"
    seed: int = 0


def arrival_times(rate: float, process: ArrivalProcess = "even", seed: int = 0) -> Iterator[float]:
    """Arrival times in seconds, without end, at `rate` a second.

    `even`: the i-th at i / rate, from 0. `poisson`: independent, exponentially distributed gaps of mean 1 / rate, the
    first of them before the first arrival.

    Raises TraceError if the rate is not from `LEAST_RATE` to `MOST_RATE`, or the process is unknown; and from the
    iterator, when time passes what a trace can hold.
    """
    if not LEAST_RATE <= rate <= MOST_RATE:
        expected = f"a number of applications a second from {LEAST_RATE:g} to {MOST_RATE:g}"
        raise TraceError(f"rate: expected {expected}, got {rate!r}")
    if process not in _PROCESSES:
        raise TraceError(f"arrivals: expected one of {', '.join(_PROCESSES)}, got {process!r}")
    return _in_time(_even(rate) if process == "even" else _poisson(rate, seed), rate)


def retime(
    applications: Iterable[Application], rate: float, process: ArrivalProcess = "even", seed: int = 0
) -> Iterator[Application]:
    """The same applications in the same order, arriving at `rate` a second instead. Lazy. Errors as `arrival_times`."""
    times = arrival_times(rate, process, seed)
    return (application._replace(arrival_s=at_s) for application, at_s in zip(applications, times, strict=False))


def _in_time(times: Iterator[float], rate: float) -> Iterator[float]:
    for index, at_s in enumerate(times):
        if at_s >= MAX_SECONDS:
            raise TraceError(
                f"rate: expected arrivals below {MAX_SECONDS:g} s, but application {index + 1} at {rate:g} a second"
                f" would come at {at_s:g} s"
            )
        yield at_s


def _even(rate: float) -> Iterator[float]:
    for index in count():
        yield index / rate


def _poisson(rate: float, seed: int) -> Iterator[float]:
    rng = random.Random(f"{seed} arrivals")
    at_s = 0.0
    while True:
        at_s += rng.expovariate(rate)
        yield round(at_s * _TICKS_PER_S) / _TICKS_PER_S
