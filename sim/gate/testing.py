"""For tests of policies: play a trace, look at what came of it, and compare it with what came of another policy.

    from tokencake import assert_not_worse

    def test_my_policy_is_not_worse_than_vllm(simulate):
        mine = simulate("traces/code-writer.jsonl", "policies/mine.py:Mine", machine="h100-llama-3.1-8b")
        theirs = simulate("traces/code-writer.jsonl", "vllm", machine="h100-llama-3.1-8b")
        assert_not_worse(mine, than=theirs, metric="app_latency_s.mean", tolerance=0.02)

The fixture `simulate` comes with the package: pytest finds it by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from ...policies.interface import Policy
from ...policies.registry import load_policy
from ...traces.apps import Application
from ...traces.errors import TokencakeError
from ...traces.format.events_file import Record
from ...traces.results.metric import check_judged, higher_is_better, metric_value, shown
from ...traces.results.metrics import Metrics
from ...traces.variants.vary import parse_variation
from ..engine.simulate import simulate as simulate_once
from ..experiments.run import RunSpec, applications_of
from ..machine.files import DEFAULT_MACHINE
from ..machine.machine import Machine
from .formats.report import finding_record
from .formats.words import allowed, change, interval
from .judge import Chance, Finding, judge
from .suite.suite import Gate
from .suite.suite_paths import SuitePaths, as_settings

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Simulation:
    """What one policy made of a trace, once or in several repeats."""

    policy: str
    spec: RunSpec  # what was played, in the first repeat
    runs: tuple[Mapping[str, Any], ...] = field(repr=False)  # the metrics of each repeat: see docs/metrics.md
    events: tuple[Record, ...] = field(
        repr=False
    )  # of the first repeat: the facts (`traces.events`), and the plans between them

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Of the first repeat."""
        return self.runs[0]

    def values(self, metric: str) -> tuple[float | None, ...]:
        """A metric, `app_latency_s.p95`, in each repeat. Raises TokencakeError for one that is unknown."""
        check_judged(metric)
        return tuple(metric_value(run, metric) for run in self.runs)

    def happened(self, kind: type) -> list[Any]:
        """The facts of one kind, in their order."""
        return [event for event in self.events if type(event) is kind]


def simulate(
    trace: str | Path,
    policy: str | Callable[[], Policy],
    *,
    machine: str | Machine = DEFAULT_MACHINE,
    settings: Mapping[str, object] | None = None,
    seed: int = 0,
    rate: float | None = None,
    repeats: int = 1,
    vary: str = "none",
    skip_oversized: bool = False,
    folder: Path = Path(),
) -> Simulation:
    """Play a trace under a policy: its name with options as on the command line, a class, or what makes a policy.

    Paths are told from `folder`. `settings` change the machine. With `repeats`, each plays what `vary` makes of the
    trace ("arrivals,tools"), the same for every policy. Raises TokencakeError for what is wrong with any of these.
    """
    paths = SuitePaths(folder)
    made = machine if isinstance(machine, Machine) else paths.machine(machine, as_settings(settings or {}))
    first = RunSpec(paths.path(trace), made, "", parse_variation(vary), 0, seed, rate, "even", skip_oversized)
    runs, events = list[Mapping[str, Any]](), list[Record]()
    for repeat in range(repeats):
        spec = replace(first, repeat=repeat)
        applications, _ = applications_of(spec)
        metrics = Metrics()
        with _leaving_fails():
            playing = _fresh(policy, paths, seed + repeat, applications)
            simulate_once(iter(applications), playing, made, [metrics.add], journal=None if repeat else events.append)
        runs.append(metrics.result())
    name = policy if isinstance(policy, str) else getattr(policy, "__name__", repr(policy))
    return Simulation(name, first, tuple(runs), tuple(events))


@contextmanager
def _leaving_fails() -> Iterator[None]:
    """A policy plays in the tests' own process: one that leaves it would end them, with success if it likes."""
    leave = os._exit
    os._exit = _refuse_to_leave
    try:
        yield
    finally:
        os._exit = leave


def _refuse_to_leave(status: int) -> NoReturn:
    raise SystemExit(status)


def _fresh(
    policy: str | Callable[[], Policy], paths: SuitePaths, seed: int, applications: tuple[Application, ...]
) -> Policy:
    """A policy that has seen nothing yet: each run needs its own."""
    if isinstance(policy, str):
        return load_policy(paths.policy(policy), seed=seed, applications=applications)
    if not callable(policy):
        raise TokencakeError(f"policy {policy!r}: expected a name, a class, or a function that makes one for each run")
    return policy()


def assert_not_worse(
    report: Simulation,
    *,
    than: Simulation,
    metric: str = "app_latency_s.mean",
    tolerance: float = 0.0,
    absolute: float = 0.0,
) -> None:
    """Fails if a metric is worse than that of another simulation of the same.

    Up to `tolerance`, a share of the other's, or up to `absolute`, in the metric's unit, it may be: whichever is more.
    It fails, too, if one of both has no value where the other has one.
    With several repeats it fails only if it is sure, at a confidence of 95 %, that it is worse at all: paired, so both
    need the same repeats of the same trace on the same machine. Raises TokencakeError if they are not.
    """
    __tracebackhide__ = True  # pytest shows the test, and not this
    if report.spec != than.spec:
        raise TokencakeError("assert_not_worse: expected one trace, played alike on one machine")
    values, base = report.values(metric), than.values(metric)
    if len(values) != len(base):
        raise TokencakeError(f"assert_not_worse: expected equal repeats, got {len(values)} and {len(base)}")
    gate = Gate(metric, higher_is_better(metric), tolerance, absolute, than=than.policy)
    finding = judge(gate, values, base, Chance(CONFIDENCE))
    if finding.word == "regressed" or finding.lacks is not None:
        raise AssertionError("\n".join(_complaint(report, than, finding)))


def _complaint(report: Simulation, than: Simulation, finding: Finding) -> Iterator[str]:
    found = finding_record(finding)
    metric = finding.gate.metric
    width = max(len(report.policy), len(than.policy))
    said = "cannot be compared with" if finding.lacks is not None else "is worse than"
    yield f"{metric} of {report.policy} {said} that of {than.policy}"
    yield f"  {report.policy:<{width}}  {shown(metric, finding.value)}"
    yield f"  {than.policy:<{width}}  {shown(metric, finding.base)}"
    yield f"  change {change(found)}, allowed {allowed(found)}{interval(found)}"
    repeats = f", {len(report.runs)} repeats" if len(report.runs) > 1 else ""
    yield f"  in {report.spec.trace} on {report.spec.machine.name}{repeats}"
