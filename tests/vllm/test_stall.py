"""Calls that wait for ever: the run ends and says for what, and a server says so in its log."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from thief import THIEF

from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.in_process import InProcess
from tokencake.live.copier.jobs import Ended
from tokencake.live.engine.control.engine_core import EngineHandle
from tokencake.live.engine.control.stall import Watch
from tokencake.policies.run_settings import RunSettings
from tokencake.traces.apps import Application, Segment
from tokencake.traces.errors import RunError
from tokencake.traces.events import AppFinished, CallAborted, CallFinished, Fact
from tokencake.traces.format.header import Header
from tokencake.traces.format.reader import read_trace
from tokencake.traces.format.writer import write_trace
from tokencake.traces.generate.single_call import one_call_application
from tokencake.traces.results.metrics import Metrics
from tokencake.traces.variants.scale import scaled
from tokencake.traces.variants.shrink import shrunk

ROOT = Path(__file__).parents[2]
BLOCKS, BLOCK_TOKENS = 20, 32
STALL_S = 0.4
NO_ROOM = r"and nothing was computed or copied for [01] s: it needs 8 blocks, and of 20 blocks 5 are free"


def call(name: str, arrival_s: float, blocks: int) -> Application:
    """One call that needs so many blocks."""
    return one_call_application(name, arrival_s, (Segment(f"{name}/x", 0, blocks * BLOCK_TOKENS - 8),), 4)


class Thief:
    """Takes blocks of the engine's pool that nobody gives back."""

    def __init__(self, engine: InProcess, blocks: int) -> None:
        self._pool = engine.scheduler.kv_cache_manager.block_pool
        self._wanted = blocks
        self._taken: list[Any] = []

    def steal(self, *_: object) -> None:
        if not self._taken:
            self._taken = self._pool.get_new_blocks(self._wanted)

    def give_back(self) -> None:
        self._pool.free_blocks(self._taken)
        self._taken = []


@contextmanager
def thief(engine: InProcess, blocks: int) -> Iterator[Thief]:
    one = Thief(engine, blocks)
    try:
        yield one
    finally:
        one.give_back()


OPTIONS = EngineOptions(gpu_blocks=BLOCKS, block_tokens=BLOCK_TOKENS, host_gib=0.01, stall_s=STALL_S)


@pytest.fixture(scope="module")
def stock_said() -> str:
    """The error of a stock engine without room; it has gone before another starts."""
    with InProcess(OPTIONS, stock=True) as stock, thief(stock, 15) as taker:
        with pytest.raises(RunError) as caught:
            stock.play([call("large", 0.5, 8)], RunSettings(), progress=taker.steal)
        return str(caught.value)


@pytest.fixture(scope="module")
def engine(stock_said: str) -> Iterator[InProcess]:
    with InProcess(OPTIONS) as running:
        yield running


@pytest.mark.parametrize("policy", ["vllm", "tokencake"])
def test_a_call_that_never_gets_its_room_ends_the_run_with_its_name(engine: InProcess, policy: str) -> None:
    """Two small calls are served; then 15 of 20 blocks go, and a call of 8 blocks waits."""
    applications = [call("a", 0.0, 2), call("b", 0.0, 2), call("large", 0.3, 8), call("larger", 0.31, 9)]
    facts: list[Fact] = []
    metrics = Metrics()

    with thief(engine, 15) as taker:

        def add(fact: Fact) -> None:
            facts.append(fact)
            metrics.add(fact)
            if sum(isinstance(heard, CallFinished) for heard in facts) == 2:
                taker.steal()

        began_s = time.monotonic()
        with pytest.raises(RunError) as caught:
            engine.play(applications, RunSettings(policy), [add])
    assert 0.3 + STALL_S <= time.monotonic() - began_s < 30
    assert re.fullmatch(rf"call 'large/call' waits \(as 1 more\), {NO_ROOM}", str(caught.value))
    assert sum(isinstance(fact, CallAborted) for fact in facts) == 2
    assert [fact.app for fact in facts if isinstance(fact, AppFinished)] == ["a", "b"]
    result = metrics.result()
    assert (result["applications"], result["calls"], result["aborted_calls"]) == (2, 2, 2)
    assert engine.play(applications, RunSettings(policy)).calls == 4  # it plays on


def test_a_stock_engine_is_watched_alike(stock_said: str) -> None:
    assert re.fullmatch(f"call 'large/call' waits, {NO_ROOM}", stock_said)


def test_a_run_waits_for_what_is_due_however_long_that_takes(engine: InProcess) -> None:
    """While something is to come by itself, nothing has stalled: a call may well wait for it."""
    with thief(engine, 15) as taker:

        def until_the_last_came(applications: int, at_s: float) -> None:
            taker.steal() if at_s < 3 * STALL_S else taker.give_back()

        applications = [call("large", 0.1, 8), call("late", 4 * STALL_S, 2)]
        assert engine.play(applications, RunSettings("vllm"), progress=until_the_last_came).calls == 2


def test_a_load_that_never_ends_is_what_a_call_waits_for(engine: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    copier: Any = get_kv_transfer_group()._copier
    finished = copier.finished
    held: list[Ended] = []
    for module in ("engine.control.stall", "client.in_process"):
        monkeypatch.setattr(f"tokencake.live.{module}.LONGEST_COPY_S", STALL_S)

    def without_loads() -> list[Ended]:
        ended = finished()
        kept = [one for one in ended if one.job in get_kv_transfer_group()._waiting_requests]
        held.extend(kept)
        return [one for one in ended if one not in kept]

    monkeypatch.setattr(copier, "finished", without_loads)
    workload = list(shrunk(scaled(read_trace(ROOT / "examples" / "code-writer.jsonl"), 0.02), 48))[:4]
    with pytest.raises(RunError, match=r"call '.*' waits.*: its blocks are being loaded from the host, and that does"):
        engine.play(workload, RunSettings("native-offload"))
    assert held
    monkeypatch.setattr(copier, "finished", lambda: [held.pop() for _ in list(held)] + finished())
    while engine._engine.busy or engine.adapter.has_work():
        engine._engine.llm.step()
    monkeypatch.setattr(copier, "finished", finished)
    assert engine.play([call("a", 0.0, 2)], RunSettings("native-offload")).calls == 1


def test_a_server_says_it_in_its_log_once_for_each_stall(
    engine: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine is stepped as its own process would, without anybody who looks."""
    from vllm.sampling_params import SamplingParams

    monkeypatch.setattr(EngineHandle, "has_own_process", True)
    engine.scheduler._tokencake_watch = Watch(STALL_S)
    llm = engine._engine.llm

    def serve(name: str, blocks: int, at_least_s: float) -> None:
        prompt = {"prompt_token_ids": list(range(1, blocks * BLOCK_TOKENS - 8))}
        llm.add_request(name, prompt, SamplingParams(temperature=0.0, max_tokens=4, detokenize=False, ignore_eos=True))
        until_s = time.monotonic() + at_least_s
        while llm.has_unfinished_requests() and (taker._taken == [] or time.monotonic() < until_s):
            llm.step()

    with caplog.at_level(logging.ERROR, logger="tokencake.live.scheduler"), thief(engine, 15) as taker:
        serve("small", 3, 0.0)
        assert not caplog.messages
        for times, name in enumerate(("first", "second"), start=1):
            taker.steal()
            serve(name, 8, 3 * STALL_S)
            assert len(caplog.messages) == times
            assert caplog.messages[-1].startswith(f"call '{name}")
            assert "it needs 8 blocks, and of 20 blocks 5 are free" in caplog.messages[-1]
            taker.give_back()
            serve("small", 2, 0.0)
    assert not engine.scheduler.requests


def test_a_server_takes_no_long_step_for_a_stall(
    engine: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A call waits while another is computed, in steps that take longer than nothing may happen."""
    from vllm.sampling_params import SamplingParams

    monkeypatch.setattr(EngineHandle, "has_own_process", True)
    engine.scheduler._tokencake_watch = Watch(STALL_S)
    llm, update = engine._engine.llm, engine.scheduler.update_from_output
    came_s = [0.0]  # the latest outcome of a step that computed something

    def slow(scheduled: Any, *others: Any) -> Any:
        if scheduled.total_num_scheduled_tokens:
            time.sleep(1.5 * STALL_S)
            came_s.append(time.monotonic())
        return update(scheduled, *others)

    monkeypatch.setattr(engine.scheduler, "update_from_output", slow)
    with caplog.at_level(logging.ERROR, logger="tokencake.live.scheduler"), thief(engine, 15) as taker:
        taker.steal()
        for name, blocks in (("small", 3), ("large", 8)):
            prompt = {"prompt_token_ids": list(range(1, blocks * BLOCK_TOKENS - 8))}
            sampling = SamplingParams(temperature=0.0, max_tokens=2, detokenize=False, ignore_eos=True)
            llm.add_request(name, prompt, sampling)
        while not caplog.messages:
            llm.step()
        assert len(came_s) == 3  # the small call has ended
        assert time.monotonic() >= came_s[-1] + STALL_S
        assert caplog.messages[0].startswith("call 'large")
        taker.give_back()
        monkeypatch.setattr(engine.scheduler, "update_from_output", update)
        while llm.has_unfinished_requests():
            llm.step()
    assert not engine.scheduler.requests


@pytest.mark.slow
def test_the_command_reports_what_was_played_until_then(tmp_path: Path) -> None:
    workload = list(shrunk(scaled(read_trace(ROOT / "examples" / "code-writer.jsonl"), 0.02), 24))[:2]
    write_trace(tmp_path / "t.jsonl", workload, Header(name="t", source="test", applications=2))
    (tmp_path / "thief.py").write_text(THIEF)
    asked = ["--gpu-blocks", "60", "--policy", "vllm", "--policy", "thief.py:Thief", "--stall-s", "1"]
    command = [sys.executable, "-m", "tokencake.cli", "live", "t.jsonl", "--model", "tiny", *asked, "--json", "r.json"]
    done = subprocess.run(
        [*command, "--csv", "r.csv", "--events", "runs"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: call ")
    assert "and nothing was computed or copied for 1 s: it needs " in said
    report = json.loads((tmp_path / "r.json").read_text())
    (whole,), (partial,) = report["runs"], report["partial"]
    assert (whole["policy"], partial["policy"]) == ("vllm", "thief.py:Thief")
    assert f"error: {partial['partial']}" == said
    assert 0 < partial["metrics"]["calls"] < whole["metrics"]["calls"]
    assert partial["metrics"]["aborted_calls"] > 0
    last = done.stdout.splitlines()[-1]
    assert last.startswith("thief.py:Thief ended after ")
    assert last.endswith(f" had finished, and is left out: {partial['partial']}")
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["1-vllm.jsonl", "2-thief.py-Thief.jsonl.partial"]
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 2


def test_a_limit_of_its_own_is_told_to_a_server() -> None:
    from tokencake.live.client.remote.serve_args import serve_args
    from tokencake.policies.run_settings import server_settings

    args = serve_args(replace(EngineOptions(), stall_s=7.5), RunSettings(), on_cpu=True)
    told = json.loads(args[args.index("--additional-config") + 1])
    assert server_settings(told).stall_s == 7.5
