"""Several KV cache groups: every step is vLLM's, through the oracle that is held to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from differential.workloads import hybrid
from engine_steps import by, by_the_simulator
from oracle import scheduler
from seeds import seeds

from tokencake.policies.field.vllm import Vllm
from tokencake.sim.engine.simulate import simulate
from tokencake.traces.events import Fact


@seeds(80, 480)
def test_every_step_is_the_oracles(seed: int) -> None:
    made = hybrid(seed)
    assert by_the_simulator(*made) == by(scheduler.simulate(*made))


@seeds(20, 100)
@pytest.mark.parametrize("version", ["0.31", "0.33"])
def test_so_it_is_with_the_rules_of_other_versions(version: str, seed: int) -> None:
    made = hybrid(seed)
    made = made._replace(machine=replace(made.machine, engine_version=version))
    assert by_the_simulator(*made) == by(scheduler.simulate(*made))


@seeds(40, 160)
def test_stretches_and_iterations_report_the_same_facts(seed: int) -> None:
    made = hybrid(seed)
    stretches: list[Fact] = []
    iterations: list[Fact] = []
    simulate(made.applications, Vllm(), made.machine, [stretches.append])
    simulate(made.applications, Vllm(), made.machine, [iterations.append], one_by_one=True)
    assert stretches == iterations
