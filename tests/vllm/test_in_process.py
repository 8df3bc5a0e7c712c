"""vLLM in this process, with the tiny model on a CPU: a trace is played, measured, interrupted, and played again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.in_process import InProcess
from tokencake.live.engine.control.versions import check_vllm
from tokencake.policies.run_settings import RunSettings
from tokencake.sim.machine.engine_versions import simulated_version
from tokencake.traces.apps import Application, CallId, Segment
from tokencake.traces.errors import EngineError, PolicyError, RunError
from tokencake.traces.events import AppFinished, AppStarted, CallArrived, CallFinished, Stepped, ToolReturned
from tokencake.traces.format.header import Header
from tokencake.traces.format.reader import read_trace
from tokencake.traces.format.writer import write_trace
from tokencake.traces.generate.single_call import one_call_application
from tokencake.traces.results.metrics import Metrics
from tokencake.traces.variants.scale import scaled
from tokencake.traces.variants.shrink import shrunk

ROOT = Path(__file__).parents[2]
BLOCKS = 60
OPTIONS = EngineOptions(model="tiny", gpu_blocks=BLOCKS, host_gib=0.05)

Answers = Mapping[CallId, list[int]]


def workload() -> list[Application]:
    """Five code writers, with contexts of up to 600 tokens: more than the blocks hold at once."""
    return list(shrunk(scaled(read_trace(ROOT / "examples" / "code-writer.jsonl"), 0.02), 24))[:5]


@pytest.fixture(scope="module")
def stock() -> Answers:
    """What stock vLLM answers."""
    with InProcess(OPTIONS, stock=True) as engine:
        return engine.play(workload(), RunSettings(), outputs=True).outputs


@pytest.fixture(scope="module")
def engine(stock: Answers) -> Iterator[InProcess]:
    """An engine for all tests of this file, started after the stock one has gone."""
    with InProcess(OPTIONS) as running:
        yield running


def free_blocks(engine: InProcess) -> int:
    free: int = engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    return free


def assert_at_rest(engine: InProcess) -> None:
    assert free_blocks(engine) == BLOCKS
    assert not engine.scheduler.requests
    assert not engine.adapter.copies.under_way


def answers_to(engine: InProcess, *prompts: list[int]) -> list[list[int]]:
    """What the model says to prompts of these tokens, one after another, past any client of ours."""
    from vllm.sampling_params import SamplingParams

    llm = engine._engine.llm
    answers = {}
    for index, prompt in enumerate(prompts):
        llm.add_request(
            str(index),
            {"prompt_token_ids": prompt},
            SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True, detokenize=False),
        )
        while llm.has_unfinished_requests():
            answers.update({out.request_id: list(out.outputs[0].token_ids) for out in llm.step()})
    return [answers[str(index)] for index in range(len(prompts))]


def test_what_the_tiny_model_says_depends_on_all_that_it_was_told(engine: InProcess) -> None:
    rng = random.Random(0)
    prompt = [rng.randrange(4096) for _ in range(400)]
    changed = [[*prompt[:at], (prompt[at] + 1) % 4096, *prompt[at + 1 :]] for at in (0, 100, 200, 300, 399)]
    answer, *others = answers_to(engine, prompt, *changed)
    assert len(set(answer)) > 16
    assert all(other != answer for other in others)


@pytest.mark.parametrize("policy", ["vllm", "tokencake-space", "tokencake-time", "tokencake"])
def test_a_policy_changes_no_answer_and_the_facts_agree_with_vllms_counters(
    engine: InProcess, stock: Answers, policy: str
) -> None:
    metrics, facts = Metrics(), list[Any]()
    apps = workload()
    stats = engine.play(apps, RunSettings(policy, steps=True), [metrics.add, facts.append], outputs=True)
    assert stats.outputs == stock
    assert (stats.errors, stats.disagreements) == ([], [])
    result = metrics.result()
    calls = [call for app in apps for call in app.calls]
    assert (result["applications"], result["calls"]) == (stats.applications, stats.calls) == (len(apps), len(calls))
    tokens = result["prefill_tokens"]
    assert sum(tokens.values()) == sum(call.prompt.tokens for call in calls)
    assert tokens["gpu_hit"] > 0
    ended = {fact.call: fact.output_tokens for fact in facts if isinstance(fact, CallFinished)}
    assert ended == {call.id: call.output_tokens for call in calls}
    assert sum(isinstance(fact, ToolReturned) for fact in facts) == sum(bool(call.tools) for call in calls)
    computed = [f for f in facts if isinstance(f, Stepped) and (f.prefill_tokens or f.decode_calls)]
    assert len(computed) == stats.steps == result["steps"]
    assert_at_rest(engine)


def test_what_is_due_is_reported_with_the_time_at_which_it_was_due(engine: InProcess) -> None:
    facts: list[Any] = []
    apps = workload()
    engine.play(apps, RunSettings(), [facts.append])
    began = [fact for fact in facts if isinstance(fact, AppStarted)]
    assert [fact.app for fact in began] == [app.id for app in apps]
    late_s = [fact.at_s - app.arrival_s for fact, app in zip(began, apps, strict=True)]
    assert all(0 <= late < 0.02 for late in late_s)  # what a step has just missed is told with a time after it
    assert late_s.count(0.0) >= len(apps) / 2
    due = {app.calls[0].id: app.arrival_s for app in apps}
    arrived = {f.request.id: f.at_s for f in facts if isinstance(f, CallArrived) and f.request.id in due}
    assert arrived == pytest.approx(due, abs=0.02)
    assert sum(isinstance(fact, AppFinished) for fact in facts) == len(apps)


def test_a_call_that_is_too_long_is_refused_and_the_engine_plays_on(engine: InProcess) -> None:
    context = engine.limits.max_context_tokens
    fits = one_call_application("fits", 0.0, (Segment("fits/x", 0, context - 2),), 2)
    long = one_call_application("long", 0.0, (Segment("long/x", 0, context - 1),), 2)
    with pytest.raises(EngineError, match=f"'long/call': {context + 1} tokens .* the model's context is {context}"):
        engine.play([long], RunSettings())
    assert engine.play([fits], RunSettings("tokencake")).calls == 1
    assert_at_rest(engine)


def test_a_policy_that_is_not_there_is_refused_and_the_engine_plays_on(engine: InProcess) -> None:
    with pytest.raises(PolicyError, match="unknown policy 'absent'"):
        engine.play(workload(), RunSettings("absent"))
    assert engine.play(workload()[:1], RunSettings()).applications == 1


def test_a_policy_that_raises_costs_its_run_nothing_but_itself(
    engine: InProcess, stock: Answers, tmp_path: Path
) -> None:
    file = tmp_path / "failing.py"
    file.write_text(FAILING)
    stats = engine.play(workload(), RunSettings(f"{file}:Failing"), outputs=True)
    assert stats.outputs == stock
    assert len(stats.errors) == 1
    assert "plan() raised ZeroDivisionError" in stats.errors[0]
    assert_at_rest(engine)


def test_an_interrupt_leaves_an_engine_that_plays_again(engine: InProcess, stock: Answers) -> None:
    begun = threading.Event()

    def interrupt() -> None:
        begun.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    def note(fact: object) -> None:
        if isinstance(fact, CallFinished):
            begun.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        engine.play(workload(), RunSettings("tokencake"), [note])
    thread.join()
    assert_at_rest(engine)
    assert engine.play(workload(), RunSettings("tokencake"), outputs=True).outputs == stock


def test_an_interrupt_is_noticed_while_nothing_is_due(engine: InProcess) -> None:
    timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        engine.play([one_call_application("late", 3600.0, (Segment("late/x", 0, 5),), 2)], RunSettings())
    timer.join()


def test_a_step_that_fails_ends_the_run_and_not_the_engine(engine: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = engine._engine.llm
    steps: list[None] = []
    step = llm.step

    def failing() -> Any:
        steps.append(None)
        if len(steps) == 5:
            raise ValueError("a bad day")
        return step()

    monkeypatch.setattr(llm, "step", failing)
    with pytest.raises(RunError, match="vLLM failed in a step: ValueError: a bad day"):
        engine.play(workload(), RunSettings())
    assert_at_rest(engine)
    assert engine.play(workload()[:1], RunSettings()).applications == 1


@pytest.mark.skipif(
    simulated_version(check_vllm()) < "0.29", reason="this vLLM ends no answer that was to be longer than the context"
)
def test_an_answer_that_is_too_short_is_a_run_that_failed(engine: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM cuts an answer off at the model's context, if nobody looks before."""
    monkeypatch.setattr("tokencake.live.client.in_process.problem", lambda application, limits: None)
    prompt = Segment("a/x", 0, engine.limits.max_context_tokens - 4)
    with pytest.raises(RunError, match="call 'a/call': vLLM ended it after 4 of 6 tokens: length"):
        engine.play([one_call_application("a", 0.0, (prompt,), 6)], RunSettings())
    assert_at_rest(engine)


# -- the command


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    write_trace(tmp_path / "t.jsonl", workload()[:2], Header(name="t", source="test", applications=2))
    return tmp_path / "t.jsonl"


def run_live(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tokencake.cli", "live", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_LOGGING_LEVEL"}  # set in tests
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def test_the_command_plays_and_reports(trace: Path, tmp_path: Path) -> None:
    files = ["--json", "r.json", "--csv", "r.csv", "--events", "runs"]
    done = run_live(trace.name, "--model", "tiny", "--gpu-blocks", str(BLOCKS), "--repeat", "2", *files, cwd=tmp_path)
    assert done.returncode == 0
    assert all("after they were due (mean)" in line for line in done.stderr.splitlines())  # the machine may be busy
    assert "means of 2 runs" in done.stdout.splitlines()[-1]
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["schema"], report["engine"]) == ("tokencake.report/1", "vllm")
    assert report["machine"]["gpu_blocks"] == BLOCKS
    asked = [(run["policy"], run["repeat"]) for run in report["runs"]]
    assert asked == [("vllm", 1), ("tokencake", 1), ("vllm", 2), ("tokencake", 2)]
    assert all(run["counters"]["vllm"] == run["counters"]["facts"] for run in report["runs"])
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 5
    names = ["1-vllm.jsonl", "2-tokencake.jsonl", "3-vllm.jsonl", "4-tokencake.jsonl"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == names


LOUD = """
import os
from tokencake.policies.field.vllm import Vllm
class Loud(Vllm):
    def __init__(self):
        os.system("echo from a shell")
"""


@pytest.mark.slow
def test_neither_a_policy_nor_vllm_s_log_gets_into_the_report(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    asked = ["--model", "tiny", "--gpu-blocks", str(BLOCKS), "--policy", "loud.py:Loud", "--verbose", "--json", "-"]
    done = run_live(trace.name, *asked, cwd=tmp_path)
    assert json.loads(done.stdout)["runs"][0]["policy"] == "loud.py:Loud"
    assert "from a shell" in done.stderr
    assert "LLM engine" in done.stderr  # from vLLM's log


SIGNALLED = """
import signal, sys
from pathlib import Path
from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.in_process import InProcess
from tokencake.policies.run_settings import RunSettings
from tokencake.traces.format.reader import read_trace

heard = []
signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
with InProcess(EngineOptions(model="tiny", gpu_blocks=400)) as engine:
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    engine.play(read_trace(Path(sys.argv[1])), RunSettings())
    signal.setitimer(signal.ITIMER_REAL, 0.0)
print(len(heard) > 50)
"""


@pytest.mark.slow
def test_signals_in_the_middle_of_its_computations_break_nothing(trace: Path) -> None:
    """On vLLM 0.26.0 each of them was written over what a kernel of AVX-512 worked on, and ended the process."""
    done = subprocess.run([sys.executable, "-c", SIGNALLED, trace], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_an_interrupt_leaves_the_results_of_finished_runs(trace: Path, tmp_path: Path) -> None:
    arguments = ["--model", "tiny", "--repeat", "1000", "--json", "r.json", "--events", "runs"]
    command = [sys.executable, "-m", "tokencake.cli", "live", trace.name, *arguments]
    started = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "runs" / "2-tokencake.jsonl").exists():
        assert started.poll() is None
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate()
    assert (started.returncode, err.strip()) == (130, "interrupted")
    assert "makespan" in out
    runs = json.loads((tmp_path / "r.json").read_text())["runs"]
    whole = [path for path in (tmp_path / "runs").iterdir() if path.suffix == ".jsonl"]
    assert len(runs) == len(whole) >= 2


def test_the_command_says_when_a_policy_did_not_last(trace: Path, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    arguments = ["--model", "tiny", "--policy", "failing.py:Failing", "--json", "r.json", "--quiet"]
    done = run_live(trace.name, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "plan() raised ZeroDivisionError" in done.stderr
    assert "Failing failed, and its figures are left out: " in done.stdout
    (played,) = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert played["metrics"]["calls"] == 54
    assert played["failed"] == f"{played['errors'][0]}; the rest of the run was played without it"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./absent"], "model './absent': there is no such folder"),
        (["--model", "."], "model '.': the folder holds no config.json"),
        (["--model", "tiny", "--block-tokens", "7"], "model 'tiny': vLLM"),
        (["--model", "tiny", "--gpu-blocks", "9"], "tokens of prompt and answer, but the model's context is 288"),
        (["--model", "tiny", "--policy", "absent"], "unknown policy 'absent'"),
        (["--model", "tiny", "--time-scale", "0"], "time scale: expected a number from"),
        (["--model", "tiny", "--json", "nowhere/r.json"], "nowhere/r.json: cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_one_line(
    trace: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run_live(trace.name, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


FAILING = '''
from tokencake.policies.interface import EVERYTHING, Plan


class Failing:
    """Plans a while, and then no more."""

    listens_to = EVERYTHING

    def __init__(self, seed=0):
        self.left = 40

    def plan(self, view):
        self.left -= 1
        1 / self.left
        return Plan()
'''
