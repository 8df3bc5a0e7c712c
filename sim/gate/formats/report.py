"""The report of a check: one dictionary, of which all formats show something.

Its schema is `tokencake.check/1`: what holds for the check as a whole, and `cases` in the order of the suite file, each
with its `causes`, its `behaviour`, the `first_difference` of its decisions, and `metrics`, one entry a gate. An
infinite bound of an interval is null. All but `wall_s` and `over_budget` is the same whenever the same is checked
again.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isinf
from typing import Any

from ....traces.version import __version__
from ..check import CaseResult, Check
from ..decisions import DecisionDifference
from ..judge import Finding

SCHEMA = "tokencake.check/1"


def report_of(check: Check) -> dict[str, Any]:
    """The report, ready for JSON."""
    suite = check.suite
    return {
        "schema": SCHEMA,
        "version": __version__,
        "suite": str(suite.file),
        "good": check.good,
        "strict": check.strict,
        "wall_s": check.wall_s,
        "budget_s": suite.budget_s,
        "over_budget": check.over_budget,
        "confidence": suite.confidence,
        "comparisons": suite.comparisons,
        "cases": [_case(one, check.fails(one)) for one in check.cases],
    }


def _case(one: CaseResult, fails: bool) -> dict[str, Any]:
    case = one.case
    return {
        "name": case.name,
        "line": case.line,
        **case.definition(),
        "state": one.state,
        "fails": fails,
        "causes": list(one.causes),
        "behaviour": one.behaviour,
        "repeats_changed": one.repeats_changed,
        "same_decisions": one.same_decisions,
        "missing_file": one.missing_file,
        "first_difference": one.difference and _difference(one.difference, one.agent),
        "error": one.error,
        "metrics": [finding_record(finding) for finding in one.findings],
    }


def _difference(difference: DecisionDifference, agent: str | None) -> dict[str, Any]:
    call = difference.about if agent is not None else None
    return {
        "decision": difference.number,
        "at_s": difference.at_s,
        "old_at_s": difference.old_at_s,
        "agent": agent or difference.about,
        "call": call,
        "old": _plan(difference.old),
        "new": _plan(difference.new),
    }


def _plan(fields: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if fields is None else dict(fields)


def finding_record(finding: Finding) -> dict[str, Any]:
    """An entry of `metrics`."""
    gate = finding.gate
    return {
        "metric": gate.metric,
        "higher_is_better": gate.higher_is_better,
        "against": gate.against,
        "base": finding.base,
        "value": finding.value,
        "change": finding.change,
        "interval": finding.interval and [None if isinf(bound) else bound for bound in finding.interval],
        "relative": gate.relative,
        "absolute": gate.absolute,
        "allowed": finding.allowed,
        "verdict": finding.word,
        "lacks": finding.lacks,
    }
