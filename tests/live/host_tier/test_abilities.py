"""Which policies have a host half: not what is said of them, but what their plans are made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokencake.live.host_tier.abilities import ACTING, WITHOUT_HOST_HALF, what_acts
from tokencake.policies.registry import ROWS, load_policy
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.files import load_machine
from tokencake.traces.events import Planned
from tokencake.traces.generate.workloads import code_writer

LRU = {"vllm", "native-offload"}  # which is what they are for
FUTURE = {"oracle"}  # nobody can run it


def acts(policy: str) -> bool:
    """Whether any of its plans has a field that acts in the tier, where memory is short."""
    machine = replace(load_machine("h100-llama-3.1-8b"), gpu_blocks=1200, host_gib=4.0)
    records: list[Any] = []
    simulate(code_writer(3, 1.0, seed=2), load_policy(policy), machine, journal=records.append)
    return any(name in ACTING for record in records if isinstance(record, Planned) for name in record.plan)


def test_those_are_refused_whose_plans_never_say_what_the_host_keeps() -> None:
    without = {name for name in ROWS if name not in FUTURE and not acts(name)}
    assert without == WITHOUT_HOST_HALF | LRU


def test_what_is_said_at_the_start_is_one_line() -> None:
    assert what_acts("tokencake", 1000, 16) == (
        "tokencake: policy tokencake decides what goes from vLLM's CPU tier (1000 chunks of 16 tokens): of its plans"
        " offload, forget and evict act, and nothing else"
    )
