"""A check's report in words: the sentences that all formats share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ....traces.files.escaping import for_terminal
from ....traces.results.metric import shown
from ....traces.results.number_formats import seconds
from ..suite.suite import BASELINE

LONGEST_SHOWN = 100  # characters of a plan's field
STATES = {  # of a case, with what it means for the check: worst first
    "failed": "could not be run",
    "regressed": "regressed",
    "uncertain": "uncertain",
    "improved": "improved",
    "changed": "behaves otherwise",
    "good": "good",
}
Case = Mapping[str, Any]


def headline(report: Mapping[str, Any]) -> str:
    """How many cases are what, and how long it took."""
    counts = Counter(case["state"] for case in report["cases"])
    said = ", ".join(f"{counts[state]} {words}" for state, words in STATES.items() if counts[state])
    total = len(report["cases"])
    return f"{total} case{'' if total == 1 else 's'}: {said} ({seconds(report['wall_s'])})"


def budget(report: Mapping[str, Any]) -> str | None:
    """What is said if the check took too long."""
    if not report["over_budget"]:
        return None
    return f"the check took {seconds(report['wall_s'])}, over its budget of {seconds(report['budget_s'])}"


def next_step(report: Mapping[str, Any]) -> str | None:
    """What can be done about a check that fails."""
    names = [case["name"] for case in report["cases"] if case["fails"] and case["error"] is None]
    if not names:
        return None
    chosen = "" if len(names) == len(report["cases"]) else "".join(f" --case {name}" for name in names)
    return f"if that is meant: tokencake check --update{chosen}"


def about(case: Case) -> str:
    """What was run."""
    repeats = f", {case['repeats']} repeats" if case["repeats"] > 1 else ""
    return f"{case['policy']} on {case['machine']}{repeats}"


def findings(case: Case) -> list[Mapping[str, Any]]:
    """The metrics that something is to be said about."""
    return [finding for finding in case["metrics"] if finding["verdict"] != "good"]


def summary(case: Case) -> str:
    """A case in one sentence."""
    if case["error"] is not None:
        return str(case["error"])
    if told := findings(case):
        return "; ".join(sentence(finding) for finding in told)
    return "as it was" if case["behaviour"] == "same" else "all metrics are within tolerance"


def missing_file(case: Case) -> str | None:
    """What is said if the old decisions are not there."""
    file = case["missing_file"]
    if file is None:
        return None
    return f"{file} is missing: the old plans cannot be shown until `tokencake check --update` writes it"


def sentence(finding: Mapping[str, Any]) -> str:
    """One metric: `app_latency_s.mean regressed: 79.1 s, baseline 75.0 s, +5.5% (allowed +2.0%)`."""
    value, base = (shown(finding["metric"], finding[key]) for key in ("value", "base"))
    word = "cannot be compared" if finding["lacks"] == "base" else VERDICTS[finding["verdict"]]
    changed = f", {change(finding)}" if finding["change"] is not None else ""
    return (
        f"{finding['metric']} {word}: {value}, {finding['against']} {base}{changed} "
        f"(allowed {allowed(finding)}{interval(finding)})"
    )


VERDICTS = {
    "good": "is within tolerance",
    "regressed": "regressed",
    "improved": "improved",
    "uncertain": "is worse, but that may be chance",
}


def name(finding: Mapping[str, Any]) -> str:
    """The metric, and the policy that it is compared with; if that is the baseline, nothing more."""
    against = finding["against"]
    return str(finding["metric"]) if against == BASELINE else f"{finding['metric']} (vs {against})"


def change(finding: Mapping[str, Any]) -> str:
    """How much more it is."""
    found = finding["change"]
    return "-" if found is None else "0.0%" if abs(found) < 0.0005 else f"{100 * found:+.1f}%"


def allowed(finding: Mapping[str, Any]) -> str:
    """How much worse was tolerated: as a share, or in the metric's unit where that is more."""
    sign = "-" if finding["higher_is_better"] else "+"
    if finding["absolute"] and finding["allowed"] == finding["absolute"]:
        return f"{sign}{shown(finding['metric'], finding['absolute'])}"
    return f"{sign}{100 * finding['relative']:g}%" if finding["relative"] else "nothing"


def interval(finding: Mapping[str, Any]) -> str:
    """Between which changes the true one lies."""
    if finding["interval"] is None or None in finding["interval"]:
        return ""
    low, high = finding["interval"]
    return f", interval {100 * (low - 1):+.1f}% to {100 * (high - 1):+.1f}%"


def details(case: Case) -> list[str]:
    """What is to be said of a case beside its metrics, a line each: causes first, then behaviour and decisions.

    No name that it tells begins a line of its own.
    """
    missing = missing_file(case)
    lines = (
        *(f"cause: {cause}" for cause in case["causes"]),
        *(f"{name(finding)}: {LACKS[finding['lacks']](finding)}" for finding in findings(case) if finding["lacks"]),
        *_behaviour(case),
        *([missing] if missing else []),
    )
    return [for_terminal(line).replace("\n", "\\n") for line in lines]


def _base_lacks(finding: Mapping[str, Any]) -> str:
    some = " in some repeats that have one now" if finding["base"] is not None else ""
    against = finding["against"]
    if against == BASELINE:
        return f"the baseline has no value{some}: `tokencake check --update` writes it"
    return f"{against} has no value{some}: there is nothing to compare with"


def _value_lacks(finding: Mapping[str, Any]) -> str:
    some = " in some repeats" if finding["value"] is not None else ""
    return f"it has no value{some}, {finding['against']} has one"


def _both_lack(finding: Mapping[str, Any]) -> str:
    return f"it and {finding['against']} have values in different repeats"


LACKS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "base": _base_lacks,
    "value": _value_lacks,
    "both": _both_lack,
}


def _behaviour(case: Case) -> Iterator[str]:
    if case["error"] is not None:
        return
    some = f" in {case['repeats_changed']} of {case['repeats']} repeats" if case["repeats"] > 1 else ""
    if case["behaviour"] == "same":
        if any(finding["against"] == BASELINE for finding in findings(case)):
            yield "the same happened at the same times: the metrics are computed otherwise, or the baseline was edited"
        if not case["same_decisions"]:
            yield "the policy decided otherwise, but nothing happened otherwise"
        if case["same_decisions"]:
            return
    elif case["behaviour"] == "times":
        yield f"only times changed{some}: the same happened in the same order"
    else:
        yield f"behaviour changed{some}"
    yield from _decisions(case)


def _decisions(case: Case) -> Iterator[str]:
    first = case["first_difference"]
    if case["same_decisions"]:
        yield "the policy decided the same: what changed is the engine, the machine or the trace"
    elif first is None and case["missing_file"] is not None:
        yield "the policy decided otherwise"
    elif first is None:
        yield "the decisions that the baseline keeps are as they were: those of later repeats, or later ones, differ"
    else:
        yield from _first(first)


def _first(first: Mapping[str, Any]) -> Iterator[str]:
    was = first["old_at_s"]
    moved = f" (then at {was:.3f} s)" if was is not None and was != first["at_s"] else ""
    call = f", call {first['call']}" if first["call"] else ""
    agent = f", agent {first['agent']}" if first["agent"] else ""
    yield f"first decision that differs: number {first['decision']:,}, at {first['at_s']:.3f} s{moved}{agent}{call}"
    old, new = first["old"], first["new"]
    if old is None or new is None:
        yield "  old plan: none" if old is None else f"  old plan: {_cut(json.dumps(old))}"
        yield "  new plan: none" if new is None else f"  new plan: {_cut(json.dumps(new))}"
        return
    for field in old:
        one, other = parted(old[field], new[field])
        yield f"  {field}: old plan {one}"
        yield f"  {' ' * len(field)}  new plan {other}"


def parted(old: Any, new: Any) -> tuple[str, str]:
    """Two values of a plan's field from where they part on."""
    if not (isinstance(old, list | tuple) and isinstance(new, list | tuple)):
        return _value(old), _value(new)
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    return _rest(old, same), _rest(new, same)


def _rest(items: Sequence[Any], same: int) -> str:
    before = f"[{same} as in the other] " if same else ""
    return before + (_cut(", ".join(_value(item) for item in items[same:])) or "nothing more" if items else "nothing")


def _value(value: Any) -> str:
    return "-" if value is None else _cut(value if isinstance(value, str) else json.dumps(value))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"
