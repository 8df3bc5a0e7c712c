"""The points of a sweep: what is varied on purpose, and every combination of it, in a fixed order."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from itertools import product
from typing import NamedTuple

from ....traces.errors import TokencakeError
from ....traces.files.fields import shown
from ...machine.files import DEFAULT_MACHINE, changed, load_machine, parse_setting
from ...machine.machine import Machine

QPS = "qps"  # in reports, the axis that is no setting of the machine: applications a second
MOST_POINTS = 100_000  # more is a slip of the pen: a step of 1 where 1,000 was meant

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER}):({_NUMBER})", re.ASCII)
_DIGITS = 1_000  # enough for sums of such numbers to be exact

Value = float | int | bool | str


class Axis(NamedTuple):
    """A setting that has more than one value, in the order in which they were asked for."""

    key: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """A combination of the axes' values: where on each axis it is, and what is played there."""

    at: tuple[tuple[str, Value], ...]
    rate: float | None  # applications a second; None: as the trace has them
    machine: Machine

    def label(self) -> str:
        """`qps=0.5 gpu_blocks=2000`; `the trace` where nothing is swept."""
        return " ".join(f"{key}={written(value)}" for key, value in self.at) or "the trace"


@dataclass(frozen=True, slots=True)
class Grid:
    """All points of a sweep. The last axis changes fastest."""

    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    base: Machine  # before any `--set`


def make_grid(loads: str | None, settings: Sequence[str], machine_name: str = DEFAULT_MACHINE) -> Grid:
    """The points of `--rate` and of `--set KEY=VALUES`, each: a value, a list `1,2,4`, or a range `0.1:1.0:0.1`.

    A range is start, stop and step; the stop belongs to it if a step meets it, in exact decimals. What has one value
    is a setting of every point, and no axis. The order is that of the rates, then of the settings as they are given.

    Raises TokencakeError, in one line that names the option and what was expected.
    """
    base = load_machine(machine_name)
    rates = _rates(loads)
    texts = _texts(settings)
    points = math.prod([len(rates), *(len(values) for values in texts.values())])
    if points > MOST_POINTS:
        raise TokencakeError(f"the grid: expected at most {MOST_POINTS:,} points, got {points:,}")
    settings_of = [[parse_setting(f"{key}={text}" if key else text) for text in found] for key, found in texts.items()]
    machines = [changed(base, dict(chosen)) for chosen in product(*settings_of)]
    axes = _axes(rates, texts, machines)
    return Grid(
        axes, tuple(Point(_place(axes, rate, machine), rate, machine) for rate in rates for machine in machines), base
    )


def setting(machine: Machine, key: str) -> Value:
    """A setting by the name that `--set` has for it. What is believed is the truth where nothing else is said."""
    believed, _, name = key.rpartition(".")
    value = machine.settings()[name]
    if believed:
        value = dict(machine.believed).get(name, value)
    assert isinstance(value, Value)
    return value


def written(value: Value) -> str:
    """A value as `--set` takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _rates(loads: str | None) -> list[float | None]:
    if loads is None:
        return [None]
    rates = [_rate(text) for text in _listed("--rate", loads)]
    _check_distinct("--rate", rates)
    return list(rates)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise TokencakeError(f"--rate: expected positive numbers, start:stop:step or a,b,c, got {shown(text)}")
    return rate


def _texts(settings: Iterable[str]) -> dict[str, list[str]]:
    """The values of each key, as they are written. What is no KEY=VALUE stays whole, for the machine to refuse."""
    texts: dict[str, list[str]] = {}
    for given in settings:
        key, equals, values = (part.strip() for part in given.partition("="))
        if not equals or not key:
            return {"": [given]}
        if key in texts:
            raise TokencakeError(f"--set {key}: given twice: expected all of its values in one, {key}=1,2")
        texts[key] = _listed(f"--set {key}", values)
    return texts


def _listed(option: str, text: str) -> list[str]:
    """The values of a range or of a list, as text."""
    if (limits := _RANGE.fullmatch(text.strip())) is None:
        return [value.strip() for value in text.split(",")]
    with localcontext(prec=_DIGITS):
        start, stop, step = (Decimal(limit) for limit in limits.groups())
        if step <= 0 or stop < start:
            raise TokencakeError(
                f"{option}: expected start:stop:step with stop not below start and step above 0, got {shown(text)}"
            )
        if stop - start >= MOST_POINTS * step:
            raise TokencakeError(f"{option}: expected at most {MOST_POINTS:,} values, got {shown(text)}")
        steps = (stop - start) // step
        return [f"{start + index * step:f}" for index in range(int(steps) + 1)]


def _axes(
    rates: Sequence[float | None], texts: Mapping[str, Sequence[str]], machines: Sequence[Machine]
) -> tuple[Axis, ...]:
    axes = [Axis(QPS, tuple(rate for rate in rates if rate is not None))] if len(rates) > 1 else []
    for key, values in texts.items():
        if len(values) > 1:
            found = tuple(dict.fromkeys(setting(machine, key) for machine in machines))
            if len(found) < len(values):
                raise TokencakeError(f"--set {key}: expected different values, got {shown(','.join(values))}")
            axes.append(Axis(key, found))
    return tuple(axes)


def _place(axes: Sequence[Axis], rate: float | None, machine: Machine) -> tuple[tuple[str, Value], ...]:
    return tuple(
        (axis.key, rate if axis.key == QPS and rate is not None else setting(machine, axis.key)) for axis in axes
    )


def _check_distinct(option: str, values: Sequence[object]) -> None:
    if len(set(values)) < len(values):
        raise TokencakeError(f"{option}: expected different values, got {', '.join(map(str, values))}")
