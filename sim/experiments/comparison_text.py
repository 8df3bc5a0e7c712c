"""A comparison in words: what follows from it, a line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

BOUND = " (bound)"  # behind the name of a policy that nobody can run


def words(report: Mapping[str, Any]) -> list[str]:
    """Who is best and who is as good; who is better by one metric and worse by another; how sure all that is."""
    return [*_best(report), *_mixed(report), *_failures(report), *_gains(report), _certainty(report)]


def _best(report: Mapping[str, Any]) -> Iterator[str]:
    judged = [row for row in report["policies"] if not row["bound"] and row["mean"] is not None]
    if not judged:
        yield f"{report['metric']} has no value under any policy"
        return
    best, *others = judged
    equals = [row["policy"] for row in others if row["against_best"] and row["against_best"]["verdict"] == "undecided"]
    if not others:
        return
    if not equals:
        yield f"{best['policy']} is the best by {report['metric']}: all others are worse"
    elif len(equals) == len(others):
        yield f"{best['policy']} has the best {report['metric']}, but none of the others can be told apart from it"
    else:
        yield f"{best['policy']} has the best {report['metric']}; not to be told apart from it: {', '.join(equals)}"


def _mixed(report: Mapping[str, Any]) -> Iterator[str]:
    """Policies that win by one metric and lose by another."""
    for row in report["policies"]:
        verdicts = [(judged["metric"], each) for judged, each in _of(report, row["policy"])]
        helped = [_said(metric, each) for metric, each in verdicts if verdict_of(each) == "wins"]
        hurt = [_said(metric, each) for metric, each in verdicts if verdict_of(each) == "loses"]
        if helped and hurt:
            yield f"{row['policy']} helps {_listed(helped)} but hurts {_listed(hurt)}, against {report['first']}"


def _of(report: Mapping[str, Any], policy: str) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    for judged in (report, *report["also"]):
        yield judged, next(row for row in judged["policies"] if row["policy"] == policy)


def _said(metric: str, row: Mapping[str, Any]) -> str:
    ratio = row["against_first"]["ratio"]
    return metric if ratio is None else f"{metric} ({percent(ratio)})"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _gains(report: Mapping[str, Any]) -> Iterator[str]:
    if any("oracle_gain" in row for row in report["policies"]):
        yield f"gain: the share of what the oracle gains over {report['first']}; a bound is nobody's choice"


def _failures(report: Mapping[str, Any]) -> Iterator[str]:
    for failed in report["failed"]:
        yield f"{failed['policy']} failed and is left out: {failed['error']}"


def _certainty(report: Mapping[str, Any]) -> str:
    repeats = report["repeats"]
    if repeats == 1:
        return "one repeat: there are no intervals, and nothing is decided"
    of = f"{repeats} repeats" if "engine" not in report else f"{repeats} live runs of each policy or more"
    varied = report["variation"]
    how = "" if varied is None else ", all of the same trace" if varied == "none" else f", which vary {varied}"
    sure = f"{100 * report['confidence']:g}% confidence, for all comparisons of a metric together"
    floor = f", a noise floor of {100 * report['noise_floor']:.1f}%" if "noise_floor" in report else ""
    return f"{of}{how}; {sure}; a margin of {100 * report['margin']:g}%{floor}"


def verdict_of(row: Mapping[str, Any]) -> str:
    """What is said of a policy against the first one."""
    against = row["against_first"]
    return "bound" if row["bound"] else "undecided" if against is None else str(against["verdict"])


def percent(ratio: float) -> str:
    """A ratio as a change: −12.3 %, with an ASCII sign."""
    return f"{100 * (ratio - 1):+.1f}%".replace("-0.0%", "+0.0%") if ratio < 10 else f"x{ratio:.1f}"
