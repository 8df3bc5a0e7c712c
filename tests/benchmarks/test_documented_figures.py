"""What documents say of runs is what the files of results hold, or what comes out today."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from documented import ROOT, page, percent, result

from tokencake.cli import run
from tokencake.policies.registry import load_policy
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.files import load_machine
from tokencake.traces.format.reader import read_trace
from tokencake.traces.results.metrics import Metrics


def test_the_published_workload_comes_to_what_the_study_says() -> None:
    found = {}
    for policy in ("vllm", "tokencake", "tokencake:rules=published,upload=demand"):
        metrics = Metrics()
        machine = load_machine("a800-qwen2.5-14b", [])
        simulate(read_trace(ROOT / "examples" / "code-writer.jsonl"), load_policy(policy), machine, [metrics.add])
        outcome: Any = metrics.result()
        found[policy] = (outcome["makespan_s"], outcome["app_latency_s"]["mean"])
    (vllm_s, vllm_mean_s), (cake_s, cake_mean_s), (published_s, _) = found.values()
    client_s = 6.0  # that the authors count beside the makespan
    gain = percent((cake_s + client_s) / (vllm_s + client_s) - 1)
    text = page("docs/study.md")
    assert f"gives a makespan of {vllm_s:.1f} and {cake_s:.1f} s." in text
    assert f": {vllm_s + client_s:.1f} against {cake_s + client_s:.1f} s, {gain} % end to end." in text
    assert f"the simulator gives {percent((published_s + client_s) / (vllm_s + client_s) - 1)} %" in text
    assert f"Mean application latency is {cake_mean_s:.1f} s against {vllm_mean_s:.1f} s." in text


def test_what_is_added_to_a_step_is_that_of_the_file() -> None:
    text = (ROOT / "docs" / "speed.md").read_text("utf-8")
    situations = {"quiet": "nothing but tokens", "news": "a call ends, another arrives, copies move"}
    for row in result("2026-11-28-overhead.json")["results"]:
        times = (row["step_us"]["vllm"]["median"], row["ours_us"]["median"], row["ours_us"]["p99"])
        cells = " | ".join(f"{time_us:,.0f}" for time_us in times)
        assert f"| {row['core']} | `{row['policy']}` | {situations[row['situation']]} | {cells} |" in text
        if (row["policy"], row["situation"]) == ("tokencake", "quiet") and row["core"] == "compiled":
            assert f"In {row['polls']} of {row['steps']} steps with nothing but tokens" in text


def test_the_sweep_of_the_page_prints_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its first point alone."""
    command = page("docs/sweep.md").split("tokencake sweep ")[1].split(" -o ")[0]
    trace, *options = command.replace("0.2:1.0:0.4", "0.2").replace("2000,4000", "2000").split()
    assert run(["sweep", str(ROOT / trace), *options, "-o", str(tmp_path / "sweep.csv")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "wins" in line]
    assert f" gpu_blocks=2000: {line.split(': ')[1]}" in page("docs/sweep.md")


def test_studies_under_other_seeds_say_what_the_page_says() -> None:
    found = result("2026-11-24-stability.json")["found"]
    shares = {}
    for workload, metrics in found.items():
        of_100 = [100 * counts["same"] / sum(counts.values()) for counts in metrics.values()]
        shares[workload] = f"{min(of_100):.1f} to {max(of_100):.1f} of 100"
    comparisons = [counts for metrics in found.values() for counts in metrics.values()]
    text = page("docs/compare.md")
    assert f"{shares['code-writer']} (code writer, by metric) and {shares['deep-research']} (deep research)" in text
    assert f"in none of {sum(sum(counts.values()) for counts in comparisons) // 1000},000 comparisons" in text
    assert not any(counts["contrary"] for counts in comparisons)


def test_the_bugs_that_the_gate_catches_are_those_of_the_file() -> None:
    found = result("2026-11-24-mutations.json")
    assert (found["caught"], found["of"], found["days_failed"], found["days"]) == (10, 10, 0, 50)
    said = (
        "ten of the ten are caught, and none of the fifty days fails (`benchmarks/results/2026-11-24-mutations.json`)"
    )
    assert said in page("docs/check.md")


def test_the_gate_says_the_same_live() -> None:
    cases = result("2026-11-24-check-live.json")["cases"]
    assert {judged["agreement"] for case in cases.values() for judged in case} == {"agree"}
    assert "live and simulated runs agree on who wins" in page("README.md")


def test_decisions_beside_baselines_are_as_small_as_is_said() -> None:
    sizes = [file.stat().st_size for file in (ROOT / "baselines").glob("*.decisions.gz")]
    assert "compressed, up to 30 KB a case here" in page("DESIGN.md")
    assert 20_000 < max(sizes) < 30_000
