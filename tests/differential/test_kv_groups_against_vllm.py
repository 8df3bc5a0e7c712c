"""Several KV cache groups: the oracle, the simulator and vLLM's hybrid coordinator, side by side in virtual time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from differential import vllm_driver
from differential.workloads import Workload, hybrid
from engine_steps import by, by_the_simulator
from oracle import scheduler as oracle
from oracle.play import Step

from tokencake.live.engine.control.versions import check_vllm
from tokencake.sim.machine.engine_versions import STATES_ARE_GIVEN_BACK, simulated_version
from tokencake.sim.machine.kv_groups import MAMBA

ENGINE_VERSION = simulated_version(check_vllm())
SEEDS = range(240)


def of_this_version(seed: int) -> Workload:
    made = hybrid(seed)
    if not STATES_ARE_GIVEN_BACK.holds(ENGINE_VERSION) and any(group.kind == MAMBA for group in made.machine.kv_groups):
        pytest.skip(f"Mamba groups are not simulated as vLLM {ENGINE_VERSION} has them")
    return made._replace(machine=replace(made.machine, engine_version=ENGINE_VERSION))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_step_is_equal(seed: int) -> None:
    made = of_this_version(seed)
    steps = []
    for ours, vllms in zip(oracle.simulate(*made), vllm_driver.simulate(*made), strict=True):
        assert ours == vllms
        steps.append(vllms)
    assert by_the_simulator(*made) == by(steps)


def test_the_workloads_reach_the_rules() -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        made = hybrid(seed)
        machine = made.machine
        steps: list[Step] = list(oracle.simulate(*made))
        seen["asynchronous" if machine.asynchronous else "synchronous"] += 1
        seen[f"{len(machine.kv_groups)} groups"] += 1
        seen.update({group.kind for group in machine.kv_groups})
        seen["all is kept" if machine.prefix_cache_retention_interval < 0 else "little is kept"] += 1
        seen["checkpoints in between"] += machine.prefix_cache_retention_interval > 0
        seen["evictions"] += steps[-1].evicted_blocks
        seen["hits"] += sum(hits for step in steps for _, hits in step.admitted)
        seen["preemptions"] += sum(len(step.preempted) for step in steps)
    enough = {
        "asynchronous": 80,
        "synchronous": 80,
        "2 groups": 40,
        "3 groups": 20,
        "4 groups": 60,
        "7 groups": 20,
        "sliding_window": 100,
        "chunked_local": 20,
        "mamba": 60,
        "all is kept": 30,
        "little is kept": 100,
        "checkpoints in between": 60,
        "evictions": 20_000,
        "hits": 3_000,
        "preemptions": 300,
    }
    assert {name: seen[name] for name, least in enough.items() if seen[name] < least} == {}
