"""Sweeps: what they write, and that neither who plays, nor an interrupt, nor a failure changes it."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from misbehaving import POLICIES

from tokencake.cli import run
from tokencake.sim.experiments.run import OUR_BUG, Outcome, RunSpec, attempt, exit_code_for
from tokencake.sim.experiments.sweep.grid import make_grid
from tokencake.sim.experiments.sweep.plan import Progress, Sweep, play_sweep
from tokencake.sim.experiments.sweep.report import build, csv_text, point_line, problems
from tokencake.sim.experiments.sweep.result_log import Result, ResultLog
from tokencake.sim.machine.files import load_machine
from tokencake.traces.errors import TokencakeError
from tokencake.traces.results.metrics import Metrics

SLOW = """
import time
from tokencake.policies.field.vllm import Vllm

class Slow(Vllm):
    def __init__(self):
        time.sleep(0.1)
"""
DYING = """
import os, signal

class Dying:
    listens_to = frozenset()

    def plan(self, view):
        os.kill(os.getpid(), signal.SIGKILL)
"""
DIVIDING = """
class Dividing:
    listens_to = frozenset()

    def plan(self, view):
        return 1 / 0
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trace():
    """Three code writers."""
    assert run(["trace", "generate", "code-writer", "--apps", "3", "-o", "t.jsonl"]) == 0
    return "t.jsonl"


def rows(file):
    with open(file, newline="") as text:
        return list(csv.DictReader(text))


def lines(file):
    """Of a file of what is kept, without the identity and without checksums, which depend on the order."""
    return [line.rpartition(', "sha256": ')[0] for line in Path(file).read_text().splitlines()[1:]]


def command(*arguments):
    return [sys.executable, "-m", "tokencake.cli", "sweep", *arguments]


# -- a whole sweep


def test_a_sweep_has_a_row_for_each_point_and_policy(trace, capsys):
    grid = ["--rate", "0.5,1", "--set", "gpu_blocks=1000,3000"]
    capsys.readouterr()
    assert run(["sweep", trace, *grid, "--repeat", "2", "-o", "s.csv", "--json", "s.json"]) == 0
    found = rows("s.csv")
    assert [(row["qps"], row["gpu_blocks"], row["policy"]) for row in found] == [
        (qps, blocks, policy)
        for qps in ("0.5", "1.0")
        for blocks in ("1000", "3000")
        for policy in ("vllm", "tokencake")
    ]
    assert {(row["repeats"], row["bound"], row["oversized"]) for row in found} == {("2", "False", "0")}
    report = json.loads(Path("s.json").read_text())
    assert (report["schema"], report["repeats"], report["missing"], report["failures"]) == (
        "tokencake.sweep/1",
        2,
        0,
        [],
    )
    assert report["axes"] == [{"key": "qps", "values": [0.5, 1.0]}, {"key": "gpu_blocks", "values": [1000, 3000]}]
    last = report["points"][-1]
    assert last["at"] == {"qps": 1.0, "gpu_blocks": 3000}
    metric = last["policies"][1]["metrics"]["app_latency_s.mean"]
    assert found[-1]["app_latency_s.mean"] == str(metric["mean"])
    assert found[-1]["app_latency_s.mean.ratio"] == str(metric["against_first"]["ratio"])
    assert metric["interval"][0] <= metric["mean"] <= metric["interval"][1]
    said = capsys.readouterr().out.splitlines()
    assert sorted(line.partition(":")[0] for line in said) == [
        f"qps={qps} gpu_blocks={blocks}" for qps in ("0.5", "1.0") for blocks in ("1000", "3000")
    ]


def test_one_repeat_of_the_trace_as_it_is_has_the_figures_of_simulate(trace, capsys):
    machine = ["--machine", "a800-qwen2.5-14b", "--set", "gpu_blocks=1000"]
    assert run(["simulate", trace, *machine, "--json", "r.json"]) == 0
    capsys.readouterr()
    assert run(["sweep", trace, *machine, "--repeat", "1", "--vary", "none", "-o", "s.csv", "--json", "s.json"]) == 0
    assert "one repeat: no intervals and no verdicts" in capsys.readouterr().err
    simulated = json.loads(Path("r.json").read_text())["runs"]
    for row, one in zip(rows("s.csv"), simulated, strict=True):
        assert row["app_latency_s.mean"] == str(one["metrics"]["app_latency_s"]["mean"])
        assert row["makespan_s"] == str(one["metrics"]["makespan_s"])
        assert row["app_latency_s.mean.low"] == row["makespan_s.verdict"] == ""


def test_the_number_of_workers_changes_no_byte(trace):
    for workers in ("1", "3"):
        where = ["-o", f"{workers}.csv", "--json", f"{workers}.json", "--workers", workers]
        assert run(["sweep", trace, "--rate", "1:3:1", "--repeat", "2", *where]) == 0
    assert Path("1.csv").read_bytes() == Path("3.csv").read_bytes()
    assert Path("1.json").read_bytes() == Path("3.json").read_bytes()


def test_more_repeats_play_only_what_is_new(trace, capsys):
    assert run(["sweep", trace, "--repeat", "1", "-o", "s.csv"]) == 0
    before = lines("s.csv.cells.jsonl")
    capsys.readouterr()
    assert run(["sweep", trace, "--repeat", "2", "--rate", "1", "-o", "s.csv"]) == 0  # another point
    assert run(["sweep", trace, "--repeat", "3", "-o", "s.csv"]) == 0
    after = lines("s.csv.cells.jsonl")
    assert (len(before), len(after)) == (2, 2 + 4 + 4)
    assert after[:2] == before
    assert {row["repeats"] for row in rows("s.csv")} == {"3"}


def test_a_point_of_which_all_is_there_is_said_at_once(trace, capsys):
    assert run(["sweep", trace, "--repeat", "1", "-o", "s.csv"]) == 0
    first = capsys.readouterr().out.splitlines()[-1]
    assert run(["sweep", trace, "--repeat", "1", "-o", "s.csv"]) == 0
    assert capsys.readouterr().out.splitlines() == ["s.csv.cells.jsonl: 2 cells are there from before", first]


# -- interrupts


SLOW_SWEEP = (
    "t.jsonl",
    "--rate",
    "1:5:1",
    "--repeat",
    "2",
    "--policy",
    "vllm",
    "--policy",
    "slow.py:Slow",
    "--workers",
    "2",
)


def begun(folder, cells):
    """A sweep of 20 cells in a folder, of which some are done."""
    results = ("-o", "s.csv", "--json", "s.json")
    process = subprocess.Popen(command(*SLOW_SWEEP, *results), cwd=folder, stdout=subprocess.DEVNULL)
    kept = folder / "s.csv.cells.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and (not kept.exists() or len(lines(kept)) < cells):
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_comes_to_the_same_bytes(trace, folder):
    Path("slow.py").write_text(SLOW)
    whole, cut = folder / "whole", folder / "cut"
    for place in (whole, cut):
        place.mkdir()
        for file in (trace, "slow.py"):
            shutil.copy(file, place)
    assert begun(whole, 20).wait(60) == 0

    process = begun(cut, 3)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    kept = cut / "s.csv.cells.jsonl"
    done = len(lines(kept))
    assert 3 <= done < 20
    assert not (cut / "s.csv").exists()
    with kept.open("ab") as file:
        file.write(b'{"cell": {"pol')  # it was writing when it died

    assert begun(cut, 20).wait(60) == 0
    assert len(lines(kept)) == 20  # none twice
    assert sorted(lines(kept)) == sorted(lines(whole / "s.csv.cells.jsonl"))
    for name in ("s.csv", "s.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_ctrl_c_writes_what_is_there_and_ends_with_130(trace, folder):
    Path("slow.py").write_text(SLOW)
    process = begun(folder, 4)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    report = json.loads(Path("s.json").read_text())
    done = len(lines("s.csv.cells.jsonl"))
    assert (report["missing"], len(report["points"]), len(rows("s.csv"))) == (20 - done, 5, 10)
    assert sum(int(row["repeats"]) for row in rows("s.csv")) == done
    assert begun(folder, 20).wait(60) == 0
    assert {row["repeats"] for row in rows("s.csv")} == {"2"}


# -- failures


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_worker_that_dies_is_a_failed_cell_and_the_rest_goes_on(trace, capsys, workers):
    Path("mine.py").write_text(DYING)
    sweep = ["sweep", trace, "--policy", "vllm", "--policy", "mine.py:Dying", "--repeat", "2", "--workers", workers]
    capsys.readouterr()
    assert run([*sweep, "-o", "s.csv", "--json", "s.json"]) == 1
    said = capsys.readouterr()
    died = (
        r"^failed: the trace: mine.py:Dying, repeat [01]: the process that played it "
        r"was ended by signal 9 \(Killed\) "
        r"during plan\(\) at 0.000000 s$"
    )
    assert len(re.findall(died, said.err, re.MULTILINE)) == 1  # two in the same way
    assert "2 cells failed, and are played again next time" in said.err
    assert said.out.startswith("the trace: vllm ")
    assert said.out.endswith(", mine.py:Dying failed\n")
    vllm, dying = rows("s.csv")
    assert (vllm["repeats"], dying["repeats"], dying["makespan_s"]) == ("2", "0", "")
    failures = json.loads(Path("s.json").read_text())["failures"]
    assert [(one["policy"], one["repeat"], one["at"]) for one in failures] == [("mine.py:Dying", n, {}) for n in (0, 1)]


def test_a_failed_cell_is_tried_again(trace):
    """Here the disk had been full, say: the policy is the same."""
    Path("mine.py").write_text(
        "import os\nfrom tokencake.policies.field.vllm import Vllm\n"
        "class Moody(Vllm):\n"
        "    def plan(self, view):\n"
        "        if not os.path.exists('well'):\n            os._exit(3)\n"
        "        return super().plan(view)\n"
    )
    sweep = ["sweep", trace, "--policy", "vllm", "--policy", "mine.py:Moody", "--repeat", "1", "-o", "s.csv"]
    assert run(sweep) == 1
    Path("well").touch()
    assert run(sweep) == 0
    assert [row["repeats"] for row in rows("s.csv")] == ["1", "1"]
    assert len(lines("s.csv.cells.jsonl")) == 3


def test_a_policy_s_own_error_is_told(trace, capsys):
    Path("mine.py").write_text(DIVIDING)
    assert run(["sweep", trace, "--policy", "mine.py:Dividing", "--repeat", "1", "-o", "s.csv"]) == 1
    said = capsys.readouterr().err
    assert (
        "repeat 0: policy Dividing: at 0.000000 s: plan() raised ZeroDivisionError: division by zero (mine.py:" in said
    )
    assert "1 cell failed, and is played again next time\n" in said


def test_what_nobody_foresaw_is_a_failed_cell_with_its_place():
    outcome = attempt(RunSpec(None, load_machine(), "vllm"))  # type: ignore[arg-type]
    assert outcome.metrics is None
    assert re.fullmatch(OUR_BUG + r"AttributeError: .* \(\w+\.py:\d+\)", outcome.error or "")


@pytest.mark.sources
def test_whoever_may_be_to_blame_for_a_bug_in_a_cell_is_named(trace):
    Path("mine.py").write_text(POLICIES)
    outcome = attempt(RunSpec(Path(trace), load_machine(), "mine.py:WritesPastTheLock"))
    assert re.match(OUR_BUG + r"AttributeError: .* \(\w+\.py:\d+\), or a bug in policy WritesPast", outcome.error or "")


def test_a_bug_of_ours_in_a_cell_is_70_at_the_end():
    assert exit_code_for([]) == 0
    assert exit_code_for(["policy Mine: plan() raised"]) == 1
    assert exit_code_for(["policy Mine: plan() raised", f"{OUR_BUG}KeyError: 1 (kv.py:3)"]) == 70


def test_a_policy_whose_file_has_changed_is_played_anew(trace):
    Path("mine.py").write_text(DIVIDING)
    sweep = ["sweep", trace, "--policy", "vllm", "--policy", "mine.py:Dividing", "--repeat", "1", "-o", "s.csv"]
    assert run(sweep) == 1
    Path("mine.py").write_text("from tokencake.policies.field.vllm import Vllm\nclass Dividing(Vllm): pass\n")
    assert subprocess.run(command(*sweep[1:]), check=False).returncode == 0
    vllm, other = rows("s.csv")
    assert vllm["makespan_s"] == other["makespan_s"] != ""


def test_a_machine_that_cannot_hold_the_trace_fails_alone(trace, capsys):
    sweep = ["sweep", trace, "--set", "gpu_blocks=100,3000", "--repeat", "1", "--policy", "vllm", "-o", "s.csv"]
    assert run(sweep) == 1
    assert "failed: gpu_blocks=100: vllm, repeat 0: " in capsys.readouterr().err
    assert [row["repeats"] for row in rows("s.csv")] == ["0", "1"]


# -- what is refused before anything is played


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "vllm", "--policy", "vllm"], "--policy: expected different policies, got vllm, vllm"),
        (["--policy", "vlm"], "unknown policy 'vlm'"),
        (["--metric", "app_latency_s"], "unknown metric 'app_latency_s'"),
        (["--vary", "tool"], "vary: unknown 'tool'"),
        (["--json", "s.csv"], "-o and --json: expected two files, got s.csv twice"),
        (["--json", "t.jsonl"], "t.jsonl: cannot be written: it is the input"),
        (["--ray-address", "auto"], "--ray-address: expected --ray, too"),
        (["-o", "nowhere/s.csv"], "nowhere/s.csv: cannot be written: no such file or directory"),
    ],
)
def test_what_can_be_known_is_refused_in_one_line(trace, capsys, arguments, said):
    capsys.readouterr()
    assert run(["sweep", trace, "-o", "s.csv", *arguments]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith(f"error: {said}")
    assert found.err.count("\n") == 1
    assert not Path("s.csv.cells.jsonl").exists()


def test_another_sweep_s_file_is_refused_and_named_what_differs(trace, capsys):
    sweep = ["sweep", trace, "--policy", "vllm", "--repeat", "1", "-o", "s.csv"]
    assert run(sweep) == 0
    kept = Path("s.csv.cells.jsonl").read_bytes()
    capsys.readouterr()
    assert run([*sweep, "--seed", "1", "--vary", "tools", "--machine", "h100-llama-3.1-8b"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: s.csv.cells.jsonl: is of another sweep, which differs in machine.name, ")
    assert "variation.arrivals" in said
    assert said.endswith("seed: --fresh replaces it\n")
    assert Path("s.csv.cells.jsonl").read_bytes() == kept
    assert run([*sweep, "--seed", "1", "--fresh"]) == 0
    assert len(lines("s.csv.cells.jsonl")) == 1


# -- what is kept


def metrics(latency_s):
    return Metrics().result() | {"app_latency_s": dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), latency_s)}


IDENTITY = {"seed": 0, "variation": {"tools": None}}
CELL: dict[str, object] = {"rate": None, "set": {}, "policy": "vllm", "repeat": 0}
PLAYED = RunSpec(Path("t.jsonl"), load_machine(), "vllm")


def kept(content):
    Path("k").write_bytes(content)
    with closing(ResultLog(Path("k"), IDENTITY)) as file:
        return file.results


def written(*outcomes):
    """The bytes of a file that keeps these metrics or errors, repeat after repeat."""
    Path("k").unlink(missing_ok=True)
    with closing(ResultLog(Path("k"), IDENTITY)) as file:
        for repeat, found in enumerate(outcomes):
            key = json.dumps(CELL | {"repeat": repeat}, sort_keys=True)
            if isinstance(found, str):
                file.add(key, Outcome(PLAYED, None, found, 0.0))
            else:
                file.add(key, Outcome(PLAYED, found, None, 0.0))
    return Path("k").read_bytes()


@pytest.fixture
def header():
    return written()


def test_a_line_that_was_cut_off_is_dropped_wherever_it_was_cut(header):
    whole = written(metrics(1.5))
    for end in range(len(whole) + 1):
        content = whole[:end]
        found = kept(content)
        key = json.dumps(CELL, sort_keys=True)
        assert found == ({key: Result(metrics(1.5), None, 0)} if end == len(whole) else {})
        assert Path("k").read_bytes() == (whole if end == len(whole) else header)


@pytest.mark.parametrize("damage", [b"\n", b"nonsense\n", b"\xff\n", b"[" * 100_000 + b"\n", b'{"a": NaN}\n'])
def test_a_damaged_line_in_the_middle_is_named(header, damage):
    with pytest.raises(TokencakeError, match=r"^k:2: expected a line of tokencake.sweep-cells/2: .*: --fresh replaces"):
        kept(header + damage)


@pytest.mark.parametrize("content", [b"qps,policy\n", b"my diary", b"{}\n"])
def test_a_file_that_is_something_else_is_left_alone(content):
    with pytest.raises(TokencakeError, match=r"^k:1: expected a line of"):
        kept(content)
    assert Path("k").read_bytes() == content


def test_a_figure_that_was_edited_is_no_figure():
    whole = written(metrics(1.5), metrics(2.5), "lost", metrics(3.5))
    first, *lines = whole.splitlines(keepends=True)
    edited = {
        2: [first, lines[0].replace(b"1.5", b"0.5"), *lines[1:]],
        3: [first, lines[0], lines[2], lines[1], lines[3]],  # another order
        4: [first, lines[0], lines[1], lines[3]],  # one is gone
        5: [first, *lines, lines[0]],  # one is there twice
        1: [first.replace(b'"seed": 0', b'"seed": 1'), *lines],
    }
    for number, content in edited.items():
        place = {3: 3, 4: 4, 5: 6}.get(number, number)
        with pytest.raises(TokencakeError, match=rf"^k:{place}: was edited, or what stood before it was: .*--fresh"):
            kept(b"".join(content))
        assert Path("k").read_bytes() == b"".join(content)
    assert len(kept(whole)) == 4
    assert len(kept(b"".join([first, *lines[:2]]))) == 2  # as it was once: those behind are played again


def test_a_file_of_an_older_version_is_refused_in_one_line(header):
    with pytest.raises(TokencakeError, match=r"^k: is of an older version, whose lines have no checksums: --fresh"):
        kept(b'{"schema": "tokencake.sweep-cells/1", "seed": 0}\n')


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda metrics: {**metrics, "makespan_s": -1}, "metrics.makespan_s: expected 0 or a number from 1e-30 to"),
        (lambda metrics: {**metrics, "makespan_s": "1"}, 'metrics.makespan_s: expected 0 or a number from .*got "1"'),
        (lambda metrics: {**metrics, "makespan_s": 1e300}, "metrics.makespan_s: expected 0 or a number from 1e-30 to"),
        (lambda metrics: {**metrics, "app_latency_s": 1.5}, "metrics.app_latency_s: expected an object, got 1.5"),
        (lambda metrics: {**metrics, "effective_utilisation": 1.5}, "metrics.effective_utilisation: expected a share"),
        (lambda metrics: {**metrics, "p": 1}, 'metrics: unknown field "p"'),
        (lambda metrics: {}, "metrics.applications: is missing"),
        (
            lambda metrics: {
                **metrics,
                "ttft_s": {**dict.fromkeys(("mean", "p50", "p90", "p95", "max"), 2.0), "p99": 3},
            },
            "metrics.ttft_s.p99: expected at most max, 2.0, got 3",
        ),
        (
            lambda metrics: {**metrics, "app_latency_s": {**metrics["app_latency_s"], "p50": None}},
            "metrics.app_latency_s.p50: expected a number, got null",
        ),
    ],
)
def test_metrics_that_no_run_has_are_refused_whoever_wrote_their_checksum(change, said):
    whole = written(change(metrics(1.5)))
    with pytest.raises(TokencakeError, match=f"^k:2: expected a line of tokencake.sweep-cells/2: {said}"):
        kept(whole)


def test_one_sweep_at_a_time_writes_a_file(header):
    with closing(ResultLog(Path("k"), IDENTITY)) as first:
        with pytest.raises(TokencakeError, match=r"^k: another sweep is writing it: expected one at a time"):
            ResultLog(Path("k"), IDENTITY)
        with pytest.raises(TokencakeError, match=r"^k: another sweep is writing it"):
            ResultLog(Path("k"), IDENTITY, fresh=True)
        first.add(json.dumps(CELL, sort_keys=True), Outcome(PLAYED, metrics(1.5), None, 0.0))
    assert len(kept(Path("k").read_bytes())) == 1


# -- figures by hand


def played(sweep, latencies_s):
    """Everything that is kept of a sweep whose latencies are these, by place, policy and repeat; others fail."""

    def play(todo):
        for spec in todo:
            latency_s = latencies_s.get((spec.machine.gpu_blocks, spec.policy, spec.repeat))
            yield Outcome(spec, latency_s and metrics(latency_s), None if latency_s else "lost", 0.0)

    with closing(ResultLog(Path("k"), {})) as file:
        play_sweep(sweep, file, play, Progress())
        return file.results


def test_means_and_ratios_are_those_of_the_repeats_that_both_have(trace):
    """vllm 10, 20, 30; the other 5, lost, 15: against 10 and 30 that is a half, whatever the second one was."""
    sweep = Sweep(Path(trace), make_grid(None, ["gpu_blocks=1000,2000"]), ("vllm", "tokencake"), 3)
    latencies = {(1000, "vllm", repeat): 10.0 * (repeat + 1) for repeat in range(3)}
    results = played(sweep, latencies | {(1000, "tokencake", 0): 5.0, (1000, "tokencake", 2): 15.0})
    report = build(sweep, results, "app_latency_s.mean")

    vllm, other = (one["metrics"]["app_latency_s.mean"] for one in report["points"][0]["policies"])
    assert (vllm["mean"], vllm["values"], vllm["against_first"]) == (20.0, [10.0, 20.0, 30.0], None)
    assert (other["mean"], other["values"]) == (10.0, [5.0, 15.0])
    assert other["against_first"] == {"ratio": 0.5, "interval": [0.5, 0.5], "verdict": "wins"}
    assert len(report["failures"]) == 1 + 6
    assert "7 cells failed, and are played again next time" in problems(report)

    line = point_line(sweep, results, sweep.grid.points[0], "app_latency_s.mean")
    assert line == "gpu_blocks=1000: vllm 20.00 s, tokencake 10.00 s (-50.0%, wins)"
    empty = point_line(sweep, results, sweep.grid.points[1], "app_latency_s.mean")
    assert empty == "gpu_blocks=2000: vllm failed, tokencake failed"
    first, second, *_ = csv.DictReader(csv_text(report).splitlines())
    assert (first["app_latency_s.mean"], first["app_latency_s.mean.ratio"]) == ("20.0", "")
    assert (second["app_latency_s.mean.ratio_low"], second["app_latency_s.mean.verdict"]) == ("0.5", "wins")
    assert second["tpot_s.mean"] == ""


def test_all_policies_of_a_repeat_are_played_together(trace):
    sweep = Sweep(Path(trace), make_grid("1,2", []), ("vllm", "tokencake"), 2)
    order = [(spec.rate, spec.repeat, spec.policy) for point in sweep.grid.points for spec in sweep.cells_at(point)]
    assert order == [(rate, repeat, policy) for rate in (1, 2) for repeat in (0, 1) for policy in ("vllm", "tokencake")]
    assert sweep.count() == len(order) == 8


def test_workers_leave_no_process_behind(trace):
    """Also of a sweep that was killed: they notice that nobody asks any more."""
    Path("slow.py").write_text(SLOW)
    process = begun(Path.cwd(), 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        process.wait()
        pytest.skip("needs /proc")
    alive = [
        int(pid)
        for tasks in Path(f"/proc/{process.pid}/task").iterdir()
        for pid in (tasks / "children").read_text().split()
    ]
    process.kill()
    process.wait()
    assert alive
    until = time.monotonic() + 30
    while time.monotonic() < until and (alive := [pid for pid in alive if _runs(pid)]):
        time.sleep(0.05)
    assert not alive


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
