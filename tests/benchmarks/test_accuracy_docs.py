"""Figures of docs/accuracy.md, study.md, speed.md and README are those of result files and of the simulator today."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import accuracy
import accuracy_tables
import pytest
from measurements import QUANTITIES

from tokencake.policies.registry import load_policy
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.files import load_machine
from tokencake.traces.format.reader import read_trace
from tokencake.traces.results.metrics import Metrics

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text("utf-8"))


def page(name: str) -> str:
    """A document with single spaces, so that lines may be broken elsewhere."""
    return " ".join((ROOT / name).read_text("utf-8").split())


def percent(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


FIGURES = result("2026-11-28-accuracy.json")
TEXT = (ROOT / "docs" / "accuracy.md").read_text("utf-8")


def test_no_table_was_copied_by_hand() -> None:
    assert accuracy_tables.filled(TEXT, FIGURES) == TEXT


def test_every_table_is_in_the_document() -> None:
    assert sorted(re.findall(r"<!-- accuracy: (.+?) -->", TEXT)) == sorted(accuracy_tables.TABLES)


def test_measured_runs_play_as_the_document_has_them() -> None:
    assert accuracy.rounded(accuracy.runs()) == FIGURES["runs"]


@pytest.mark.slow
def test_the_published_cells_play_as_the_document_has_them() -> None:
    assert accuracy.rounded(accuracy.cells()) == FIGURES["cells"]


def test_the_errors_of_measured_runs_come_to_what_is_said() -> None:
    errors = {
        quantity: [abs(run["errors"][quantity]["mean"]) for run in FIGURES["runs"].values()] for quantity in QUANTITIES
    }
    every = [error for of in errors.values() for error in of]
    ttft, tpot, latency = (f"{100 * fmean(of):.1f}" for of in errors.values())
    means = f"**Mean absolute error of the means {100 * fmean(every):.1f} %**"
    parts = f"(time to first token {ttft}, between tokens {tpot}, latency {latency}), worst {100 * max(every):.1f} %."
    assert f"{means} {parts}" in page("docs/accuracy.md")
    first, second = (run["errors"]["output_tokens_per_s"]["mean"] for run in list(FIGURES["runs"].values())[:2])
    assert f"to the last: {percent(first)} and {percent(second)} %." in page("docs/accuracy.md")
    (bound,) = re.findall(r"seconds lie within (\d+) % of published measurements", page("README.md"))
    assert max(every) < int(bound) / 100


def test_what_one_constant_changes_is_what_is_said() -> None:
    known = {cell: accuracy_tables.measured_cell(*cell)["e2e_s"] for cell in accuracy_tables.MEASURED_CELLS}
    gains = {
        label: cells[3]["e2e_s"] / cells[1]["e2e_s"] - 1
        for label, cells in FIGURES["settings"].items()
        if label == accuracy.SHIPPED or label.split()[0] in accuracy_tables.STEP_COSTS
    }
    measured = known["agent_offload", 1.0] / known["base", 1.0] - 1
    said = (
        f"between {percent(max(gains.values()))} and {percent(min(gains.values()))} % "
        f"(as shipped {percent(gains[accuracy.SHIPPED])} %, measured {percent(measured)} %)"
    )
    assert said in page("docs/accuracy.md")


def test_the_live_runs_came_to_what_is_said() -> None:
    runs = {run["policy"]: run for run in result("2026-11-24-live-accuracy.json")["runs"]}
    live = [fmean(repeat["app_latency_s"]["mean"] for repeat in runs[name]["live"]) for name in ("vllm", "tokencake")]
    simulated = [runs[name]["simulated"]["app_latency_s"]["mean"] for name in ("vllm", "tokencake")]
    gains = [percent(of[1] / of[0] - 1) for of in (live, simulated)]
    assert f"in mean latency is {gains[0]} % live and {gains[1]} % simulated" in page("docs/accuracy.md")
    (run,) = result("2026-11-28-validate-shrunk.json")["runs"]
    tail = [1e3 * run[side]["ttft_s"]["p90"] for side in ("simulated", "live")]
    said = f"p90 of TTFT is {tail[0]:.0f} ms simulated and {tail[1]:.0f} ms live, an error of"
    assert f"{said} {percent(run['error']['ttft_s.p90'])} %" in page("docs/accuracy.md")


def test_the_runs_on_the_oldest_vllm_are_those_of_the_file() -> None:
    kept = (RESULTS / "2026-11-28-oldest-vllm.txt").read_text("utf-8")
    (scheduler, left_out), (live, skipped) = re.findall(r"^tests/\w+ +(\d+) passed, (\d+) skipped", kept, re.M)
    total = int(left_out) + int(skipped)
    said = f"{scheduler} of the scheduler and {int(live):,} of the live half, its server and its routes passed; {total}"
    assert f"{said} were skipped, {left_out} of them" in page("docs/accuracy.md")


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
    for row in result("2026-11-24-overhead.json")["results"]:
        times = (row["step_us"]["vllm"]["median"], row["ours_us"]["median"], row["ours_us"]["p99"])
        cells = " | ".join(f"{time_us:,.0f}" for time_us in times)
        assert f"| `{row['policy']}` | {situations[row['situation']]} | {cells} |" in text
        if (row["policy"], row["situation"]) == ("tokencake", "quiet"):
            assert f"In {row['polls']} of {row['steps']} steps with nothing but tokens" in text
