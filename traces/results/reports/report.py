"""The report of a comparison: one dictionary, and the same as CSV.

The dictionary has the schema `tokencake.report/1`: what was simulated (`version`, `trace`, `machine`), and `runs`, one
for each policy in the order asked for. All but `wall_s`, `calls_per_s` and `policy_s` of a run are the same whenever
the same is simulated again. The keys of `metrics` are those of `traces.results.metrics.Metrics`.

The report of a live comparison has the same shape, and `engine`, which says which engine that was. Its policies may
have several runs each, told apart by `repeat`; tables and verdict are then about their means. A run with `failed`, a
line that says why, was not the policy's to its end: a policy with such a run has no figures and no verdict. A run that
an interrupt or the engine ended is none of `runs`: it is one of `partial`, with the metrics of what had happened until
then, and says there why it ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..csv_table import csv_table

SCHEMA = "tokencake.report/1"


@dataclass(frozen=True, slots=True)
class Run:
    """One policy's run, as far as it came."""

    policy: str  # as it was asked for, options included
    options: Mapping[str, object]
    seed: int
    wall_s: float
    policy_s: float | None  # of it: spent in the policy; None: nobody knows
    metrics: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)  # what only some engines have to say

    def record(self) -> dict[str, Any]:
        calls = self.metrics["calls"]
        return {
            "policy": self.policy,
            "options": dict(self.options),
            "seed": self.seed,
            "wall_s": self.wall_s,
            "calls_per_s": calls / self.wall_s if self.wall_s > 0 else None,
            "policy_s": self.policy_s,
            "metrics": dict(self.metrics),
            **self.more,
        }


def build(
    version: str,
    trace: Mapping[str, object],
    machine: Mapping[str, object],
    runs: Sequence[Run],
    engine: Mapping[str, object] | None = None,
    partial: Sequence[Run] = (),
) -> dict[str, Any]:
    """The report. `trace` has at least path, sha256, applications and calls; `machine` its name and settings.

    `engine` has the name and the version of the engine if it is a real one. `partial`: runs that were cut off.
    """
    return {
        "schema": SCHEMA,
        "version": version,
        **({"engine": engine["name"], "engine_version": engine["version"]} if engine else {}),
        "trace": dict(trace),
        "machine": dict(machine),
        "runs": [run.record() for run in runs],
        **({"partial": [run.record() for run in partial]} if partial else {}),
    }


def csv_text(report: Mapping[str, Any]) -> str:
    """One line a run; nested names are joined by dots, what is absent is empty."""
    rows = [dict(_flat(run)) for run in report["runs"]]
    names = list(dict.fromkeys(name for row in rows for name in row if not name.startswith("options.")))
    return csv_table(names, ([row.get(name) for name in names] for row in rows))


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in record.items():
        name = prefix + key
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list):
            yield name, "; ".join(map(str, value))
        else:
            yield name.removeprefix("metrics."), value
