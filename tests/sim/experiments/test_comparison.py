"""A comparison's report, from runs whose figures are made up; and what people are told of it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tokencake.sim.experiments.comparison_report import (
    STANDARD_METRICS,
    ComparisonError,
    ComparisonRuns,
    Method,
    build,
    csv_text,
)
from tokencake.sim.experiments.comparison_tables import tables
from tokencake.sim.experiments.comparison_text import words
from tokencake.sim.experiments.run import Outcome, RunSpec
from tokencake.sim.machine.files import load_machine

ABOUT: Mapping[str, object] = {
    "version": "1",
    "trace": {"applications": 2, "calls": 9},
    "machine": {"name": "m"},
    "variation": "arrivals",
    "seed": 0,
}
DAYS = (10.0, 14.0, 11.0, 13.0, 12.0)  # a first policy's mean latency in five repeats
METHOD = Method()


def run(latency_s: float, p99_s: float | None = None, makespan_s: float = 100.0) -> dict[str, Any]:
    """Metrics of a run: what is not said is the same in all."""
    tail_s = latency_s if p99_s is None else p99_s
    names = ("mean", "p50", "p90", "p95", "max")
    app = {**dict.fromkeys(names, latency_s), "p99": tail_s}
    return {"app_latency_s": app, "ttft_s": {"mean": 1.0, "p99": 2.0}, "makespan_s": makespan_s, "preemptions": 0}


def runs(factor: float, tail: float = 1.0) -> list[dict[str, Any]]:
    """So many times the first policy's latency in each repeat, give or take a hundredth; its tail by another factor."""
    off = (0.01, -0.01, 0.0, 0.005, -0.005)
    return [
        run(day * factor * (1 + each), day * tail * factor * (1 + each)) for day, each in zip(DAYS, off, strict=True)
    ]


def report(found: Mapping[str, Sequence[Mapping[str, Any]]], **more: Any) -> dict[str, Any]:
    made = build(ABOUT, more.pop("metric", "app_latency_s.mean"), found, more.pop("method", METHOD), **more)
    json.dumps(made, allow_nan=False)
    return made


def row(made: Mapping[str, Any], policy: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in made["policies"] if each["policy"] == policy)
    return found


FIVE = {
    "vllm": [run(day) for day in DAYS],
    "slow": runs(1.3),
    "fast": runs(0.7),
    "equal": runs(1.0),
    "oracle": runs(0.5),
}


def test_policies_come_best_first_and_each_has_a_verdict_against_the_first() -> None:
    made = report(FIVE, bounds=["oracle"])
    assert [each["policy"] for each in made["policies"]] == ["oracle", "fast", "equal", "vllm", "slow"]
    assert made["first"] == "vllm"
    verdicts = {each["policy"]: each["against_first"]["verdict"] for each in made["policies"]}
    assert verdicts == {"oracle": None, "fast": "wins", "vllm": "undecided", "equal": "undecided", "slow": "loses"}
    fast = row(made, "fast")
    assert fast["mean"] == pytest.approx(8.4, rel=0.01)
    assert fast["interval"][0] < fast["mean"] < fast["interval"][1]
    assert fast["against_first"]["ratio"] == pytest.approx(0.7, rel=0.01)
    assert fast["against_first"]["interval"][0] < 0.7 < fast["against_first"]["interval"][1]


def test_the_schema_has_what_others_read() -> None:
    made = report(FIVE, bounds=["oracle"])
    assert made["schema"] == "tokencake.comparison/1"
    assert (made["metric"], made["repeats"], made["confidence"], made["margin"]) == (
        "app_latency_s.mean",
        5,
        0.95,
        0.02,
    )
    assert set(row(made, "fast")) == {
        "policy", "bound", "mean", "interval", "against_first", "against_best", "oracle_gain",
    }  # fmt: skip
    assert [each["metric"] for each in made["also"]] == [path for path in STANDARD_METRICS if path != made["metric"]]


def test_the_share_of_the_oracles_gain() -> None:
    """It halves the latency; the fast policy gains 30 of its 50 %."""
    made = report(FIVE, bounds=["oracle"])
    gain = row(made, "fast")["oracle_gain"]
    assert gain["share"] == pytest.approx(0.6, abs=0.01)
    assert gain["interval"][0] < 0.6 < gain["interval"][1]
    assert row(made, "vllm")["oracle_gain"] is None
    assert row(made, "oracle")["oracle_gain"]["share"] == pytest.approx(1.0)
    assert "oracle_gain" not in row(report({"vllm": FIVE["vllm"], "fast": FIVE["fast"]}), "fast")


def test_a_bound_never_wins_and_is_never_what_others_are_compared_with() -> None:
    made = report({"oracle": FIVE["oracle"], "vllm": FIVE["vllm"]}, bounds=["oracle"])
    assert made["first"] == "vllm"
    assert row(made, "oracle")["bound"]
    assert row(made, "oracle")["against_first"]["verdict"] is None
    with pytest.raises(ComparisonError, match="does not see the future"):
        report({"oracle": FIVE["oracle"]}, bounds=["oracle"])


def test_the_lower_bound_stands_beside_latencies_and_makespan_alone() -> None:
    lower = [run(3.0)] * 5
    made = report(FIVE, bounds=["oracle"], lower=lower)
    assert made["lower_bound"]["mean"] == pytest.approx(3.0)
    bounded = [each["metric"] for each in made["also"] if "lower_bound" in each]
    assert bounded == ["app_latency_s.p95", "app_latency_s.p99", "makespan_s"]


def test_a_policy_that_helps_the_mean_and_hurts_the_tail_is_said_to_do_so() -> None:
    made = report({"vllm": FIVE["vllm"], "mixed": runs(0.7, tail=2.0)})
    (tail,) = (each for each in made["also"] if each["metric"] == "app_latency_s.p99")
    assert row(made, "mixed")["against_first"]["verdict"] == "wins"
    assert row(tail, "mixed")["against_first"]["verdict"] == "loses"
    (said,) = (line for line in words(made) if line.startswith("mixed helps"))
    assert "app_latency_s.mean (-30.0%)" in said
    assert "but hurts app_latency_s.p99 (+39.9%), against vllm" in said


def test_who_is_as_good_as_the_best_is_said() -> None:
    made = report({"vllm": FIVE["vllm"], "fast": runs(0.7), "twin": runs(0.701), "slow": runs(1.3)})
    assert words(made)[0] == "fast has the best app_latency_s.mean; not to be told apart from it: twin"
    sure = report({"vllm": FIVE["vllm"], "fast": runs(0.7)})
    assert words(sure)[0] == "fast is the best by app_latency_s.mean: all others are worse"


def test_more_policies_make_each_verdict_harder() -> None:
    few = row(report({"vllm": FIVE["vllm"], "fast": FIVE["fast"]}), "fast")["against_first"]["interval"]
    many = row(
        report({"vllm": FIVE["vllm"], **{f"p{n}": FIVE["equal"] for n in range(8)}, "fast": FIVE["fast"]}), "fast"
    )
    assert many["against_first"]["interval"][1] - many["against_first"]["interval"][0] > few[1] - few[0]


def test_one_repeat_has_no_interval_and_decides_nothing() -> None:
    made = report({"vllm": FIVE["vllm"][:1], "fast": FIVE["fast"][:1]})
    fast = row(made, "fast")
    assert fast["interval"] == [fast["mean"], fast["mean"]]
    assert fast["against_first"]["verdict"] == "undecided"
    assert words(made)[-1] == "one repeat: there are no intervals, and nothing is decided"


def test_a_metric_that_has_no_value_is_last_and_judged_by_nobody() -> None:
    nothing = [{**one, "makespan_s": None} for one in FIVE["fast"]]
    made = report({"vllm": FIVE["vllm"], "none": nothing}, metric="makespan_s")
    assert [each["policy"] for each in made["policies"]] == ["vllm", "none"]
    assert row(made, "none") == {
        "policy": "none", "bound": False, "mean": None, "interval": None, "against_first": None, "against_best": None,
    }  # fmt: skip


def test_what_the_first_policy_has_none_of_has_no_ratio() -> None:
    some = [{**one, "preemptions": 3} for one in FIVE["fast"]]
    made = report({"vllm": FIVE["vllm"], "some": some}, metric="preemptions")
    assert row(made, "some")["against_first"] == {"ratio": None, "interval": [None, None], "verdict": "loses"}
    assert "-" in shown(made)


def test_unpaired_runs_are_judged_with_their_noise_floor() -> None:
    made = report({"vllm": FIVE["vllm"], "fast": FIVE["fast"]}, method=Method(paired=False))
    paired = row(report({"vllm": FIVE["vllm"], "fast": FIVE["fast"]}), "fast")["against_first"]["interval"]
    unpaired = row(made, "fast")["against_first"]["interval"]
    assert made["noise_floor"] == pytest.approx(0.132, abs=0.003)  # the five days deviate by 13.2 % of 12 s
    assert unpaired[0] < paired[0] < paired[1] < unpaired[1]


# -- for people


def shown(made: Mapping[str, Any], width: int = 120) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(tables(made, width))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines())
    return str(text)


def test_tables_mark_bounds_and_never_let_them_win() -> None:
    text = shown(report(FIVE, bounds=["oracle"], lower=[run(3.0)] * 5))
    lines = [line for line in text.splitlines() if "(bound)" in line]
    assert lines[0].startswith("oracle (bound)")
    assert lines[1].startswith("lower bound (bound)")
    assert not any("wins" in line for line in lines)
    (fast,) = (line for line in text.splitlines() if line.startswith("fast") and "[" in line)
    assert "-30.0% [" in fast
    assert " 60% " in fast
    assert fast.rstrip().endswith("wins")


def test_what_lies_within_the_margin_for_sure_is_said_to_be_the_same() -> None:
    text = shown(report({"vllm": FIVE["vllm"], "same": FIVE["vllm"], "equal": runs(1.0)}))
    assert text.count(" same") >= 2
    assert "undecided" not in shown(report({"vllm": FIVE["vllm"], "same": FIVE["vllm"]}))


def test_tables_fit_into_80_characters_and_lose_nothing() -> None:
    names = {f"a-long-name-{n}:upload=predictive": runs(1 - 0.1 * n) for n in range(3)}
    made = report({"vllm": FIVE["vllm"], **names, "oracle": FIVE["oracle"]}, bounds=["oracle"])
    text = shown(made, width=80)
    assert text.count("p99") == 2
    assert "…" not in text


def test_csv_has_a_line_for_each_metric_and_policy() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(report(FIVE, bounds=["oracle"])))))
    assert len(rows) == 6 * 5
    fast = next(each for each in rows if each["policy"] == "fast")
    assert fast["metric"] == "app_latency_s.mean"
    assert float(fast["ratio"]) == pytest.approx(0.7, rel=0.01)
    assert fast["verdict"] == "wins"
    assert fast["repeats"] == "5"


# -- runs as they come in


def outcome(policy: str, repeat: int, error: str | None = None) -> Outcome:
    spec = RunSpec(Path("t.jsonl"), load_machine("h200-llama-3.1-8b", ()), policy, repeat=repeat)
    return Outcome(spec, None if error else {"makespan_s": repeat}, error, 0.1)


def test_repeats_count_when_every_policy_has_finished_them() -> None:
    comparison = ComparisonRuns(("a", "b"))
    for each in (("a", 0), ("a", 1), ("b", 1), ("a", 2)):
        comparison.add(outcome(*each))
    assert comparison.repeats() == [1]
    assert comparison.finished() == {"a": [{"makespan_s": 1}], "b": [{"makespan_s": 1}]}


def test_a_policy_that_fails_stops_nobody_else_and_is_not_tried_again() -> None:
    comparison = ComparisonRuns(("a", "b", "c"))
    comparison.add(outcome("b", 0, "it broke"))
    specs = [outcome(policy, repeat).spec for repeat in range(2) for policy in "abc"]
    left = [spec for spec in specs if comparison.wants(spec)]
    assert [spec.policy for spec in left] == ["a", "c", "a", "c"]
    for spec in left:
        comparison.add(outcome(spec.policy, spec.repeat))
    assert list(comparison.finished()) == ["a", "c"]
    assert comparison.failed == {"b": "repeat 0: it broke"}


def test_before_anything_has_finished_there_is_nothing() -> None:
    comparison = ComparisonRuns(("a", "b"))
    comparison.add(outcome("a", 0))
    assert comparison.repeats() == []
    assert comparison.finished() == {}
