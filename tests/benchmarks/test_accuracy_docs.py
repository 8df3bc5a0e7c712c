"""The figures of docs/accuracy.md are those of result files, and those of what the simulator plays today."""

from __future__ import annotations

import re
from collections import Counter
from statistics import fmean

import accuracy
import accuracy_tables
import pytest
from differential.workloads import Workload, workload
from differential.workloads import published as published_workload
from documented import RESULTS, ROOT, page, percent, result
from measurements import QUANTITIES
from oracle import scheduler
from oracle.block_pool import Block, Key, OracleBlockPool

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
    (bound,) = re.findall(r"means of calls lie within (\d+) % of published measurements", page("README.md"))
    assert max(every) < int(bound) / 100


def test_the_published_cells_lie_as_near_as_the_readme_says() -> None:
    said = re.findall(
        r"A800 end to end within (\S+) %, mean application latency within (\S+) %, mean TTFT within (\S+) %",
        page("README.md"),
    )
    for key, bound in zip(("e2e_s", "app_mean_s", "ttft_mean_s"), *said, strict=True):
        for mode, rate in accuracy_tables.MEASURED_CELLS:
            known = accuracy_tables.measured_cell(mode, rate)[key]
            error = FIGURES["cells"][mode][f"{rate:g}"][key] / known - 1
            assert round(100 * abs(error), 1) <= float(bound)


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


def counted(made: Workload) -> Counter[str]:
    """What the oracle, which does what vLLM does, comes to."""
    steps = list(scheduler.simulate(*made))
    return Counter(
        calls=sum(len(step.finished) for step in steps),
        steps=len(steps),
        evicted=steps[-1].evicted_blocks,
        preemptions=sum(len(step.preempted) for step in steps),
    )


def cells(counts: Counter[str]) -> str:
    return " | ".join(f"{counts[name]:,}" for name in ("calls", "steps", "evicted", "preemptions"))


@pytest.mark.slow
def test_the_workloads_that_are_held_to_vllm_are_as_many_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    duplicates = 0
    cache = OracleBlockPool.cache

    def count_duplicates(pool: OracleBlockPool, block: Block, key: Key) -> None:
        nonlocal duplicates
        duplicates += pool.cached(key) is not None
        cache(pool, block, key)

    monkeypatch.setattr(OracleBlockPool, "cache", count_duplicates)
    made = [workload(seed) for seed in range(240)]
    counts = sum((counted(one) for one in made), Counter())
    asynchronous = sum(one.machine.asynchronous for one in made)
    kinds = f"{240 - asynchronous} synchronous, {asynchronous} asynchronous"
    assert f"duplicates, little memory; {kinds} | {cells(counts)} |" in TEXT
    assert f"duplicates ({duplicates})" in page("docs/accuracy.md")
    assert f"at 1.0 a second, synchronous | {cells(counted(published_workload(False)))} |" in TEXT
    assert f"| the same, asynchronous | {cells(counted(published_workload(True)))} |" in TEXT
