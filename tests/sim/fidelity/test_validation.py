"""Live beside simulated: errors, spreads, and who wins on both sides, made of metrics whose outcome is known."""

from __future__ import annotations

import json
import math
import random
import signal
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
from made_up_engine import Engine
from rich.console import Console
from trace_files import one_app, one_call, written

from tokencake.cli import run
from tokencake.live.client import in_process
from tokencake.sim.calibration.host_load import HostLoad
from tokencake.sim.fidelity import rerun as recorded
from tokencake.sim.fidelity.validation import LOST, OPEN, WON, Trial, build, error_of, margin, outcome
from tokencake.sim.fidelity.validation_text import SHOWN, tables, words
from tokencake.traces.console.interrupts import Terminated
from tokencake.traces.errors import RunError
from tokencake.traces.results.metrics import Metrics

EQUAL = {
    "plans": 10, "different": 0, "not_replayed": 0, "admissions": 5, "admissions_different": 0, "records": 50,
    "records_different": 0, "ended": None,
}  # fmt: skip


def metrics(makespan_s: float, latency_s: float, **more: Any) -> dict[str, Any]:
    """A run's metrics, of the form that the fold gives."""
    result = Metrics().result()
    return result | {"makespan_s": makespan_s, "app_latency_s": result["app_latency_s"] | {"mean": latency_s}} | more


def trial(policy: str, simulated_s: float, *live_s: float) -> Trial:
    return Trial(policy, metrics(simulated_s, simulated_s), [metrics(s, s) for s in live_s], [EQUAL] * len(live_s))


def verdicts(first: Trial, other: Trial) -> tuple[str, str, bool | None]:
    """Simulated, live, and whether they agree."""
    verdict = build({}, [first, other])["verdict"]
    sides = [verdict[side][other.policy]["makespan_s"]["outcome"] for side in ("simulated", "live")]
    return sides[0], sides[1], verdict["agree"]


def test_errors_and_means_of_repeats() -> None:
    one = Trial("vllm", metrics(11.0, 3.0, preemptions=4), [metrics(9.0, 2.0), metrics(11.0, 4.0)], [EQUAL, EQUAL])
    (found,) = build({"machine": {"name": "m"}}, [one])["runs"]
    assert found["policy"] == "vllm"
    assert found["live"]["makespan_s"] == 10.0
    assert found["live"]["app_latency_s"]["mean"] == 3.0
    assert found["live"]["app_latency_s"]["p50"] is None
    assert found["error"]["makespan_s"] == pytest.approx(0.1)
    assert found["error"]["app_latency_s.mean"] == 0.0
    assert found["error"]["app_latency_s.p50"] is None
    assert found["error"]["preemptions"] is None  # 4 instead of none is no share
    assert found["error"]["recomputed_tokens"] == 0.0
    assert found["spread"]["makespan_s"] == pytest.approx(0.2)
    assert found["spread"]["recomputed_tokens"] == 0.0
    assert found["parity"] == EQUAL | {"plans": 20, "admissions": 10, "records": 100}


def test_the_report_is_json_with_its_schema() -> None:
    report = build({"engine": {"vllm": "0.32.0"}}, [trial("vllm", 10, 10, 11), trial("tokencake", 8, 8, 8.5)])
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["schema"] == "tokencake.validation/1"
    assert report["engine"] == {"vllm": "0.32.0"}
    assert set(report["runs"][0]) >= {"policy", "simulated", "live", "error", "parity"}
    assert set(report["verdict"]) == {"simulated", "live", "agree"}


def test_both_sides_win() -> None:
    assert verdicts(trial("a", 10, 10, 10.1, 9.9), trial("b", 8, 8.2, 8.3, 8.1)) == (WON, WON, True)


def test_both_sides_lose() -> None:
    assert verdicts(trial("a", 8, 8.2, 8.3, 8.1), trial("b", 10, 10, 10.1, 9.9)) == (LOST, LOST, True)


def test_the_sides_disagree() -> None:
    assert verdicts(trial("a", 10, 10, 10.1, 9.9), trial("b", 12, 8.2, 8.3, 8.1)) == (LOST, WON, False)


def test_a_policy_that_failed_live_has_no_verdict() -> None:
    """Its live runs are half those of an engine without it: 8 against 10 s would be a win on both sides."""
    failing = trial("b", 8, 8.2, 8.3, 8.1)
    failing.failed = "at 1.2 s: not today"
    report = build({}, [trial("a", 10, 10, 10.1, 9.9), failing, trial("c", 10, 10, 10.1, 9.9)])
    assert [found["failed"] for found in report["runs"]] == [None, "at 1.2 s: not today", None]
    assert set(report["verdict"]["live"]) == set(report["verdict"]["simulated"]) == {"c"}
    lines = words(report)
    assert "b failed, and has no verdict: at 1.2 s: not today" in lines
    assert not [line for line in lines if line.startswith("b against")]
    assert WON not in " ".join(lines)
    shown = Console(width=80, record=True)
    with shown.capture() as captured:
        shown.print(tables(report, 80))
    assert "8.2" not in captured.get()


def test_against_a_policy_that_failed_live_nobody_has_a_verdict() -> None:
    failing = trial("a", 10, 10, 10.1, 9.9)
    failing.failed = "at 1.2 s: not today"
    report = build({}, [failing, trial("b", 8, 8.2, 8.3, 8.1)])
    assert report["verdict"] == {"simulated": {}, "live": {}, "agree": None}
    assert words(report)[-2:] == [
        "a failed, and has no verdict: at 1.2 s: not today",
        "there is no verdict: a, which the others are held against, failed",
    ]


def test_no_win_within_the_noise_of_the_repeats_on_either_side() -> None:
    """5 % less, of runs that differ by 40 %: neither side may claim it, and silence on both sides is no agreement."""
    noisy = [trial("a", 10, 8, 10, 12), trial("b", 9.5, 7.6, 9.5, 11.4)]
    assert verdicts(*noisy) == (OPEN, OPEN, None)
    assert words(build({}, noisy))[-1] == "too few or too noisy repeats to tell whether the verdicts agree"


def test_steady_repeats_that_show_no_difference_agree() -> None:
    """Repeats that are equal, and some within 1 %: had there been a difference of 5 %, it would have shown."""
    for steady in (
        [trial("a", 10, 10, 10), trial("b", 10, 10, 10)],
        [trial("a", 10, 9.97, 10, 10.03), trial("b", 10, 9.96, 10, 10.04)],
    ):
        assert verdicts(*steady) == (OPEN, OPEN, True)
        assert words(build({}, steady))[-1] == "the verdicts agree"


def test_one_metric_that_is_told_is_enough_to_agree_on() -> None:
    """When the last application ends is chance here, the mean latency is not."""
    first = Trial("a", metrics(10, 10), [metrics(8, 10), metrics(12, 10.1)], [EQUAL] * 2)
    other = Trial("b", metrics(9.5, 8), [metrics(7.6, 8.1), metrics(11.4, 8.2)], [EQUAL] * 2)
    verdict = build({}, [first, other])["verdict"]
    assert [said["outcome"] for said in verdict["live"]["b"].values()] == [WON, OPEN]
    assert verdict["agree"] is True


def test_a_simulated_win_that_the_noise_hides_live_is_a_disagreement_only_beyond_the_margin() -> None:
    assert verdicts(trial("a", 10, 8, 10, 12), trial("b", 2, 7.6, 9.5, 11.4)) == (WON, OPEN, False)


def test_one_run_has_no_interval() -> None:
    assert margin([8.0], [10.0, 11.0]) is None
    report = build({}, [trial("a", 10, 10), trial("b", 8, 8)])
    assert report["verdict"]["live"]["b"]["makespan_s"] == {
        "outcome": WON,
        "change": pytest.approx(-0.2),
        "margin": None,
    }
    assert "one run, no interval" in "\n".join(words(report))


def test_equal_repeats_have_no_noise() -> None:
    assert margin([8.0, 8.0], [10.0, 10.0]) == 0.0
    assert outcome(-0.0001, 0.0) == OPEN
    assert outcome(None, 0.1) == OPEN


def test_the_margin_is_welchs_interval() -> None:
    """By hand: variances 1 and 4 of three runs each; 2.94 degrees of freedom, so 2; a deviation of √(5/3)."""
    assert margin([9.0, 10.0, 11.0], [18.0, 20.0, 22.0]) == pytest.approx(4.303 * math.sqrt(5 / 3) / 20)


@pytest.mark.parametrize("repeats", [2, 3, 5, 40])
def test_policies_that_are_equal_are_rarely_told_apart(repeats: int) -> None:
    """The margin covers the true difference, none, in 95 of 100 cases or more."""
    rng = random.Random(repeats)
    told_apart = 0
    for _ in range(2000):
        values, base = ([rng.gauss(10.0, 1.0) for _ in range(repeats)] for _ in range(2))
        noise = margin(values, base)
        told_apart += outcome(error_of(fmean(values), fmean(base)), noise) != OPEN
    assert told_apart / 2000 < 0.065


def test_a_policy_without_a_live_run_is_left_out() -> None:
    report = build({}, [trial("vllm", 10, 10), trial("tokencake", 8)])
    assert [found["policy"] for found in report["runs"]] == ["vllm"]
    assert report["verdict"] == {"simulated": {}, "live": {}, "agree": None}
    assert words(report) == [words(report)[0]]


def shown(report: dict[str, Any], width: int = 100) -> str:
    console = Console(width=width, record=True, highlight=False)
    with console.capture() as capture:
        console.print(tables(report, width))
    return capture.get()


def test_the_table_has_simulated_live_error_and_spread() -> None:
    said = shown(build({}, [trial("vllm", 11.0, 9.0, 11.0)]))
    (makespan,) = (line.split() for line in said.splitlines() if line.startswith("makespan"))
    assert makespan == ["makespan,", "s", "11", "10", "+10.0%", "20.0%"]
    assert "preemptions" not in said  # there were none on either side


def test_a_narrow_table_comes_in_parts_that_have_all() -> None:
    said = shown(build({}, [trial("vllm", 11.0, 9.0, 11.0)]), width=40)
    makespans = [line.split() for line in said.splitlines() if line.startswith("makespan, s")]
    assert [cells[2:] for cells in makespans] == [["11"], ["10"], ["+10.0%"], ["20.0%"]]
    assert all(len(line) <= 40 for line in said.splitlines())


def test_every_shown_metric_is_one_of_the_folds() -> None:
    flat = build({}, [trial("vllm", 11.0, 9.0)])["runs"][0]["error"]
    assert {path for _, path in SHOWN} <= set(flat)


def test_words_on_parity() -> None:
    first = trial("vllm", 10, 10, 10)
    first.parity[1] = EQUAL | {
        "different": 1,
        "not_replayed": 2,
        "admissions_different": 3,
        "ended": "at 4 s it parted",
    }
    line = words(build({}, [first]))[0]
    assert line == (
        "vllm: 20 plans of 2 live runs replayed, 3 plans differ; 10 admissions and 100 records with the live step times"
        " simulated, 3 admissions and no record differ (given up at 4 s it parted)"
    )


def test_words_on_parity_where_all_is_equal_and_where_there_is_one_of_each() -> None:
    assert words(build({}, [trial("vllm", 10, 10, 10)]))[0] == (
        "vllm: 20 plans of 2 live runs replayed, no plan differs; 10 admissions and 100 records with the live step"
        " times simulated, no admission and no record differs"
    )
    one = trial("vllm", 10, 10)
    one.parity[0] = EQUAL | {"plans": 1, "admissions": 1, "records": 1, "records_different": 1}
    assert words(build({}, [one]))[0] == (
        "vllm: 1 plan of 1 live run replayed, no plan differs; 1 admission and 1 record with the live step times"
        " simulated, no admission and 1 record differs"
    )


# -- the command, as far as it needs no engine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["t.jsonl"], "Missing option '--model'"),
        (["absent.jsonl", "--model", "tiny"], "absent.jsonl: cannot be read"),
        (["t.jsonl", "--model", "tiny", "--policy", "vlm"], "unknown policy 'vlm'"),
        (["t.jsonl", "--model", "tiny", "--machine", "h300"], 'unknown machine "h300"'),
        (["t.jsonl", "--model", "tiny", "--rate", "0"], "rate: expected a number of applications a second"),
        (["t.jsonl", "--model", "tiny", "--repeat", "0"], "0 is not in the range"),
        (["t.jsonl", "--model", "tiny", "--json", "nowhere/v.json"], "cannot be written"),
        (["t.jsonl", "--model", "tiny", "--events", "t.jsonl"], "cannot be written"),
    ],
)
def test_what_is_wrong_is_found_before_an_engine_starts(
    arguments: list[str],
    message: str,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["trace", "generate", "code-writer", "--apps", "1", "-o", "t.jsonl"]) == 0
    capsys.readouterr()
    assert run(["validate", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


# -- the command, on an engine that is simulated with another clock


@pytest.fixture(autouse=True)
def host_load(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float | None]]:
    """What the host's load was in each live run: none, whatever else runs beside the tests, until a test says more."""
    loads: list[dict[str, float | None]] = []
    monkeypatch.setattr(HostLoad, "until", lambda *_: loads.pop(0) if loads else {})
    return loads


def test_a_host_that_was_loaded_in_a_live_run_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    host_load: list[dict[str, float | None]],
) -> None:
    """On a machine that is told, nothing is calibrated, and the live runs alone can show it."""
    monkeypatch.setattr(in_process, "InProcess", Engine)
    monkeypatch.setattr(recorded, "play_recorded", lambda *arguments: SimpleNamespace(record=lambda: EQUAL))
    host_load += [
        {"waited_share": 0.01, "stolen_share": 0.02},
        {"waited_share": 0.34, "stolen_share": None},
        {"waited_share": None, "stolen_share": 0.12},
    ]
    asked = [str(written(tmp_path, one_app(one_call(id="x")))), "--model", "tiny", "--gpu-blocks", "850"]
    assert run(["validate", *asked, "--machine", "h100-llama-3.1-8b", "--repeat", "2"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: tokencake, live run 2: the host was loaded: for 34% of the time in which the engine had something to"
        " do it waited for a CPU; measure where nothing else runs",
        "warning: vllm, live run 3: the host was loaded: other virtual machines took 12% of its CPUs' time",
    ]


@pytest.mark.parametrize(
    ("error", "code", "why"),
    [
        (RunError("call 'a/c' waits"), 1, "call 'a/c' waits"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(signal.SIGTERM), 143, "interrupted"),
    ],
)
def test_a_run_that_is_cut_off_is_told_and_nothing_is_compared_with_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    why: str,
) -> None:
    """The third of six runs, the second of `vllm`: of each policy there is a whole one."""
    monkeypatch.setattr(in_process, "InProcess", Engine)
    same = SimpleNamespace(record=lambda: EQUAL)  # a simulated engine tells of no steps, which this looks at
    monkeypatch.setattr(recorded, "play_recorded", lambda *arguments: same)
    monkeypatch.setattr(Engine, "ends", error)
    calls = [one_call(id="x"), one_call(id="y", after=["x"]), one_call(id="z", after=["y"])]
    asked = [str(written(tmp_path, one_app(*calls))), "--model", "tiny", "--gpu-blocks", "850"]
    files = ["--json", str(tmp_path / "v.json"), "--events", str(tmp_path / "runs")]
    assert run(["validate", *asked, "--machine", "h100-llama-3.1-8b", *files]) == code

    out, err = capsys.readouterr()
    assert err.strip() == (f"error: {why}" if code == 1 else "interrupted")
    last = out.splitlines()[-1]
    assert last.startswith("vllm, repeat 2, ended after ")
    assert last.endswith(f"when 2 calls and 0 applications had finished, and is left out: {why}")
    assert "1 live run replayed" in out
    found = json.loads((tmp_path / "v.json").read_text())
    assert [(one["policy"], len(one["repeats"])) for one in found["runs"]] == [("vllm", 1), ("tokencake", 1)]
    (partial,) = found["partial"]
    assert (partial["policy"], partial["repeat"], partial["partial"]) == ("vllm", 2, why)
    assert partial["metrics"]["calls"] == 2
    assert found["runs"][0]["live"]["calls"] == 3
    assert (tmp_path / "runs" / "3-vllm.jsonl.partial").exists()


def test_when_the_first_run_is_cut_off_that_is_all_there_is_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Third(Engine):
        def __init__(self, options: Any) -> None:
            super().__init__(options)
            self.runs = 2

    monkeypatch.setattr(in_process, "InProcess", Third)
    monkeypatch.setattr(Engine, "ends", RunError("call 'a/c' waits"))
    calls = [one_call(id="x"), one_call(id="y", after=["x"]), one_call(id="z", after=["y"])]
    asked = [str(written(tmp_path, one_app(*calls))), "--model", "tiny", "--gpu-blocks", "850", "--repeat", "1"]
    assert run(["validate", *asked, "--machine", "h100-llama-3.1-8b"]) == 1
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "error: call 'a/c' waits\n")
    assert out.startswith("vllm ended after ")
