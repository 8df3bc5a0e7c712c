"""The simulator schedules what vLLM schedules: step for step, through the oracle that is held to vLLM itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from differential.workloads import Workload, capped, hosted, published, workload
from engine_steps import by, by_the_simulator
from oracle import scheduler
from seeds import seeds

from tokencake.policies.field.vllm import Vllm
from tokencake.sim.engine.simulate import simulate
from tokencake.traces.events import Fact


@seeds(80, 240)
def test_every_step_is_the_oracles(seed: int) -> None:
    made = workload(seed)
    assert by_the_simulator(*made) == by(scheduler.simulate(*made))


@pytest.mark.parametrize("seed", range(80))
def test_every_step_is_the_oracles_where_long_prompts_are_cut(seed: int) -> None:
    made = capped(seed)
    assert by_the_simulator(*made) == by(scheduler.simulate(*made))


@pytest.mark.parametrize("seed", range(40))
def test_every_step_is_the_oracles_where_the_host_has_work(seed: int) -> None:
    made = hosted(seed)
    assert by_the_simulator(*made) == by(scheduler.simulate(*made))


@pytest.mark.parametrize("seed", range(40))
def test_every_step_is_the_oracles_where_lone_long_prompts_are_cut_too(seed: int) -> None:
    made = capped(seed)
    made = made._replace(machine=replace(made.machine, engine_version="0.30"))
    assert by_the_simulator(*made) == by(scheduler.simulate(*made))


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_every_step_of_the_published_workload_is_the_oracles(asynchronous: bool) -> None:
    made = published(asynchronous)
    assert by_the_simulator(*made) == by(scheduler.simulate(*made))


@seeds(80, 240)
def test_stretches_and_iterations_report_the_same_facts(seed: int) -> None:
    assert_stretches_are_iterations(workload(seed))


@pytest.mark.parametrize("seed", range(80))
def test_stretches_end_where_a_long_prompt_is_cut_otherwise(seed: int) -> None:
    assert_stretches_are_iterations(capped(seed))


def assert_stretches_are_iterations(made: Workload) -> None:
    stretches: list[Fact] = []
    iterations: list[Fact] = []
    simulate(made.applications, Vllm(), made.machine, [stretches.append])
    simulate(made.applications, Vllm(), made.machine, [iterations.append], one_by_one=True)
    assert stretches == iterations
