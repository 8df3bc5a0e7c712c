"""What is told of a comparison: percentages against the first policy, and who wins in words."""

import csv
import io
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from tokencake.traces.results.metrics import Metrics
from tokencake.traces.results.reports.repeats import averaged
from tokencake.traces.results.reports.report import Run, build, csv_text
from tokencake.traces.results.reports.report_tables import tables
from tokencake.traces.results.reports.report_text import cut_off_lines, verdict


def a_run(policy: str, latency_s: float | None = 100.0, makespan_s: float | None = 200.0, **more: Any) -> Run:
    metrics = Metrics().result() | {"calls": 50, "makespan_s": makespan_s} | more
    metrics["app_latency_s"] = metrics["app_latency_s"] | {"mean": latency_s}
    return Run(policy, {}, seed=0, wall_s=0.5, policy_s=0.1, metrics=metrics)


def a_report(*runs: Run) -> dict[str, Any]:
    played = {"path": "t.jsonl", "sha256": "0" * 64, "applications": 5, "calls": 50}
    return build("1.2.3", played, {"name": "m"}, runs)


def printed(report: dict[str, Any], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(tables(report, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_report_has_the_shape_that_other_tools_rely_on() -> None:
    report = a_report(a_run("vllm"))
    assert list(report) == ["schema", "version", "trace", "machine", "runs"]
    assert report["schema"] == "tokencake.report/1"
    (run,) = report["runs"]
    assert list(run) == ["policy", "options", "seed", "wall_s", "calls_per_s", "policy_s", "metrics"]
    assert run["calls_per_s"] == 100.0
    names = {"makespan_s", "app_latency_s", "ttft_s", "tpot_s", "queue_s", "prefill_tokens", "recomputed_tokens"}
    names |= {"preemptions", "gpu_usage_mean", "effective_utilisation", "stalled_share", "offload_bytes"}
    names |= {"upload_bytes", "uploads", "critical_inversions"}
    assert names <= run["metrics"].keys()
    assert list(run["metrics"]["queue_s"]) == ["mean", "p50", "p90", "p95", "p99", "max"]
    json.dumps(report, allow_nan=False)


def test_the_table_compares_with_the_first_policy() -> None:
    text = printed(a_report(a_run("vllm"), a_run("tokencake", latency_s=60.0, makespan_s=210.0)))
    assert re.search(r"^makespan +200\.0 s +210\.0 s +\+5\.0%$", text, re.MULTILINE)
    assert re.search(r"^application latency, mean +100\.0 s +60\.00 s +-40\.0%$", text, re.MULTILINE)


def test_what_was_not_measured_is_a_dash_without_a_percentage() -> None:
    text = printed(a_report(a_run("vllm", makespan_s=None), a_run("tokencake")))
    assert re.search(r"^makespan +- +200\.0 s *$", text, re.MULTILINE)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_three_policies_are_readable_on_any_terminal(width: int) -> None:
    runs = [a_run(name, latency_s=12_345.678) for name in ("vllm", "tokencake", "tokencake:upload=demand")]
    text = printed(a_report(*runs), width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert text.count("12,346 s") == (3 if width > 60 else 4)  # the first policy again, in a second part
    assert "…" not in text


def test_options_stand_under_their_policy() -> None:
    text = printed(a_report(a_run("vllm"), a_run("tokencake:upload=demand,rules=published")))
    heads = [line.split()[-1] for line in text.splitlines()[:3]]
    assert heads == ["tokencake:", "upload=demand,", "rules=published"]


def test_a_name_in_brackets_is_no_markup() -> None:
    assert "[bold]odd" in printed(a_report(a_run("vllm"), a_run("[bold]odd")))


def test_the_verdict_names_the_winner() -> None:
    (line,) = verdict(a_report(a_run("vllm"), a_run("tokencake", latency_s=60.0, makespan_s=180.0)))
    assert line == (
        "tokencake wins on mean application latency (-40.0%: 60.00 s instead of 100.0 s) and makespan"
        " (-10.0%: 180.0 s instead of 200.0 s) against vllm (one run, no interval)"
    )


def test_the_verdict_says_that_a_policy_loses() -> None:
    (line,) = verdict(a_report(a_run("vllm"), a_run("tokencake", latency_s=150.0, makespan_s=180.0)))
    assert line.startswith("tokencake loses on mean application latency (+50.0%: ")
    assert "), wins on makespan (-10.0%: " in line


def test_the_verdict_says_that_nothing_changed() -> None:
    (line,) = verdict(a_report(a_run("vllm"), a_run("tokencake", latency_s=100.04)))
    assert line.startswith("tokencake changes nothing on mean application latency (100.0 s) and makespan (200.0 s)")


def test_one_policy_alone_has_no_verdict() -> None:
    assert verdict(a_report(a_run("vllm"))) == []


def repeated(policy: str, *latencies_s: float, **more: Any) -> list[Run]:
    return [
        replace(a_run(policy, latency_s=latency_s, **more), more={"repeat": index})
        for index, latency_s in enumerate(latencies_s, start=1)
    ]


def test_repeats_are_shown_as_their_mean() -> None:
    runs = [*repeated("vllm", 90.0, 110.0), *repeated("tokencake", 50.0, 70.0)]
    text = printed(a_report(*runs))
    assert re.search(r"^application latency, mean +100\.0 s +60\.00 s +-40\.0%$", text, re.MULTILINE)
    assert text.count("tokencake") == printed(a_report(a_run("vllm"), a_run("tokencake"))).count("tokencake")


def test_a_verdict_over_repeats_says_how_far_they_lie_apart() -> None:
    (line,) = verdict(a_report(*repeated("vllm", 90.0, 110.0), *repeated("tokencake", 54.0, 66.0, makespan_s=180.0)))
    assert line.startswith("tokencake wins on mean application latency (-40.0%")
    assert line.endswith("against vllm (means of 2 runs, which lie up to 20.0% apart)")


def test_a_difference_within_the_noise_is_no_win() -> None:
    (line,) = verdict(a_report(*repeated("vllm", 90.0, 110.0), *repeated("tokencake", 84.0, 86.0, makespan_s=180.0)))
    assert line.startswith("tokencake is within the noise on mean application latency (-15.0%")
    assert "), wins on makespan (-10.0%" in line


def test_a_policy_that_was_asked_for_twice_stands_there_twice() -> None:
    runs = [*repeated("vllm", 90.0, 110.0), *repeated("vllm", 50.0, 70.0)]
    assert [run["metrics"]["app_latency_s"]["mean"] for run in averaged(a_report(*runs)["runs"])] == [100.0, 60.0]


def test_a_mean_over_what_was_not_measured_is_none() -> None:
    (run,) = averaged(a_report(*repeated("vllm", 1.0, 3.0, makespan_s=None))["runs"])
    assert (run["metrics"]["makespan_s"], run["metrics"]["app_latency_s"]["mean"]) == (None, 2.0)


def test_a_live_report_names_its_engine() -> None:
    played = {"path": "t.jsonl", "sha256": "0" * 64, "applications": 5, "calls": 50}
    report = build("1.2.3", played, {"name": "m"}, [a_run("vllm")], {"name": "vllm", "version": "0.32.0"})
    assert list(report) == ["schema", "version", "engine", "engine_version", "trace", "machine", "runs"]
    assert "simulated" in printed(a_report(a_run("vllm")))
    assert "simulated" not in printed(report)


def test_csv_has_a_line_a_run() -> None:
    runs = (a_run("vllm", makespan_s=None), a_run("a,b", uploads={"early": 3, "late": 0}))
    first, second = csv.DictReader(io.StringIO(csv_text(a_report(*runs))))
    assert first["policy"] == "vllm"
    assert first["makespan_s"] == ""
    assert second["policy"] == "a,b"
    assert second["app_latency_s.mean"] == "100.0"
    assert second["uploads.early"] == "3"


WHY = "at 1.2 s: not today; the rest of the run was played without it"


def failing(policy: str, latency_s: float, **more: Any) -> Run:
    return replace(a_run(policy, latency_s), more={"failed": WHY, **more})


def test_what_the_engine_did_without_a_policy_that_failed_is_not_shown_as_its() -> None:
    report = a_report(a_run("vllm"), failing("mine", 60.0), a_run("tokencake", 50.0))
    text = printed(report)
    assert "60.00" not in text
    assert "-40.0%" not in text
    assert "mine (failed)" in text
    assert re.search(r"^application latency, mean +100\.0 s +- +50\.00 s +-50\.0%$", text, re.MULTILINE)
    failed, other = verdict(report)
    assert failed == f"mine failed, and its figures are left out: {WHY}"
    assert other.startswith("tokencake wins on mean application latency")
    assert report["runs"][1]["failed"] == WHY
    assert WHY in csv_text(report)


def test_a_run_that_was_cut_off_is_told_of_and_counts_for_nobody() -> None:
    why = "call 'a/c1' waits"
    broken = replace(
        a_run("tokencake", latency_s=1.0, applications=2), policy_s=None, more={"repeat": 2, "partial": why}
    )
    played = {"path": "t.jsonl", "sha256": "0" * 64, "applications": 5, "calls": 50}
    report = build("1.2.3", played, {"name": "m"}, [a_run("vllm")], partial=[broken])
    assert verdict(report) == []
    (line,) = cut_off_lines(report)
    came = "ended after 0.500 s, when 50 calls and 2 applications had finished"
    assert line == f"tokencake, repeat 2, {came}, and is left out: {why}"
    assert verdict({**report, "runs": []}) == []
    assert cut_off_lines(a_report(a_run("vllm"))) == []


def test_against_a_policy_that_failed_nobody_wins() -> None:
    report = a_report(failing("mine", 100.0), a_run("tokencake", 50.0))
    assert "%" not in printed(report)
    assert verdict(report) == [
        f"mine failed, and its figures are left out: {WHY}",
        "tokencake: no verdict against mine (failed)",
    ]


def test_a_policy_that_failed_in_one_of_its_repeats_has_no_mean() -> None:
    report = a_report(
        *(replace(a_run("vllm"), more={"repeat": repeat, "failed": None}) for repeat in (1, 2)),
        replace(a_run("mine", 60.0), more={"repeat": 1, "failed": None}),
        failing("mine", 60.0, repeat=2),
    )
    assert "60.00" not in printed(report)
    assert verdict(report) == [f"mine failed, and its figures are left out: in repeat 2: {WHY}"]


def test_the_one_policy_that_was_played_failed() -> None:
    assert verdict(a_report(failing("mine", 100.0))) == [f"mine failed, and its figures are left out: {WHY}"]
