"""What holds of each policy that has a name: it serves everybody, loses no block, repeats itself and knows no future.

A new row of the registry is tested as soon as it is there; its options, when they stand in benchmarks/digests.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path

import pytest
from crowded_runs import check_all_ended, crowded, facts_of
from digests import OPTIONS, SPECS
from fickle_clients import FickleClients
from hard_runs import HONEST, chunks, facts_on, hard, largest_blocks, making, smallest
from runs import assert_the_same_by_all_structures, play, play_to_rest

from tokencake.policies.registry import ROWS, is_bound, load_policy
from tokencake.policies.replay.replay import replay
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.files import load_machine
from tokencake.sim.machine.machine import Machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application
from tokencake.traces.convert.formats import convert
from tokencake.traces.events import Fact
from tokencake.traces.format.reader import read_trace

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.jsonl"))
TRACES = Path(os.environ.get("TOKENCAKE_TRACES", Path(__file__).parents[3] / "shared" / "traces"))

REAL: tuple[tuple[str, str], ...] = (
    ("agentic-coding", "agentic-coding"),
    ("mooncake/conversation_trace.jsonl", "mooncake"),
    ("azure/AzureLLMInferenceTrace_code.csv", "azure"),
)
MOST_APPLICATIONS = 1000  # of a public trace
BLOCK_TOKENS = 16

every = pytest.mark.parametrize("spec", SPECS)
every_honest = pytest.mark.parametrize("spec", HONEST)
rows_and_slow_options = pytest.mark.parametrize(
    "spec", [*ROWS, *(pytest.param(spec, marks=pytest.mark.slow) for spec in OPTIONS)]
)


# -- everybody is served


@every
@chunks(quick=25, most=500, size=95)
def test_every_application_ends_where_only_one_call_fits(spec: str, seeds: range) -> None:
    for seed in seeds:
        applications, machine = smallest(seed)
        check_all_ended(facts_on(spec, applications, machine), applications)


@every
@chunks(quick=25, most=500, size=95)
def test_every_application_ends_where_more_fits(spec: str, seeds: range) -> None:
    for seed in seeds:
        applications, machine = hard(seed + 1000)
        check_all_ended(facts_on(spec, applications, machine), applications)


@every
def test_crowded_applications_end_where_only_one_call_fits_and_little_on_the_host(spec: str) -> None:
    for apps in crowded():
        blocks = largest_blocks(apps, BLOCK_TOKENS)
        check_all_ended(facts_of(making(spec, apps), apps, gpu_blocks=blocks, host_gib=1), apps)


@every
def test_nothing_is_held_when_all_is_over(spec: str) -> None:
    """Neither for a call nor for an agent, on the GPU or on the host."""
    for seed in range(4):
        applications, machine = (smallest if seed % 2 else hard)(seed)
        rest = play_to_rest(applications, making(spec, applications), machine, idle_s=1000.0)
        for pool in (rest.gpu, rest.host):
            assert pool.num_free_blocks == pool.num_blocks
            assert pool.stalled_idle_blocks == 0
            pool.check()
            pool.check_holds([])


@every
def test_all_that_the_engine_keeps_agrees_at_each_boundary(spec: str) -> None:
    applications, machine = hard(7)
    simulate(applications, making(spec, applications)(), machine, check_every=1)


# -- the same facts, the same plans


@every
def test_the_engines_structures_do_not_show(spec: str) -> None:
    for seed in range(5):
        applications, machine = (smallest if seed % 2 else hard)(seed)
        assert assert_the_same_by_all_structures(applications, making(spec, applications), machine)


@every_honest
def test_recorded_facts_give_the_recorded_plans(spec: str) -> None:
    for seed in range(10):
        applications, machine = hard(seed)
        parity = replay(play(applications, partial(load_policy, spec), machine), load_policy(spec), machine.beliefs())
        assert parity.plans
        assert parity.equal, parity.first


@cache
def crowded_facts(spec: str) -> list[list[Fact]]:
    return [facts_of(making(spec, apps), apps) for apps in crowded()]


@every
def test_a_run_repeats_exactly(spec: str) -> None:
    for apps, facts in zip(crowded(), crowded_facts(spec), strict=True):
        check_all_ended(facts, apps)
        assert facts_of(making(spec, apps), apps) == facts


# -- clients that leave


@every_honest
def test_whatever_clients_do_there_is_a_plan(spec: str) -> None:
    """vLLM goes on without a policy that raised once."""
    for seed in range(60):
        clients = FickleClients(seed, load_policy(spec))
        clients.happen(300)
        assert len(clients.plans) > 100


# -- the future is unknown


@every_honest
def test_longer_tools_change_nothing_before_the_first_would_have_returned(spec: str) -> None:
    for apps, facts in zip(crowded(), crowded_facts(spec), strict=True):
        other = facts_of(partial(load_policy, spec), [_with_longer_tools(app) for app in apps])
        first = next(i for i, fact in enumerate(facts) if isinstance(fact, e.ToolReturned))
        assert first > 10
        assert facts[:first] == other[:first]
        assert facts != other


def _with_longer_tools(app: Application) -> Application:
    calls = (
        call._replace(tools=tuple(tool._replace(duration_s=tool.duration_s + 100) for tool in call.tools))
        for call in app.calls
    )
    return app._replace(calls=tuple(calls))


def test_only_a_bound_sees_the_future() -> None:
    assert {spec.split(":")[0] for spec in SPECS if is_bound(spec)} == {"oracle"}


# -- whole traces in the smallest cache


def check_served(spec: str, applications: Sequence[Application], machine: Machine) -> None:
    """All of a trace in a cache that holds its largest call."""
    tight = replace(machine, gpu_blocks=largest_blocks(applications, machine.block_tokens))
    check_all_ended(facts_on(spec, applications, tight), applications)


@cache
def shipped(trace: Path) -> tuple[Application, ...]:
    return tuple(read_trace(trace))


@rows_and_slow_options
@pytest.mark.parametrize("trace", EXAMPLES, ids=lambda path: path.stem)
def test_every_shipped_trace_is_served(spec: str, trace: Path) -> None:
    check_served(spec, shipped(trace), load_machine("a800-qwen2.5-14b"))


@cache
def recorded(path: str, kind: str) -> tuple[Application, ...]:
    return tuple(islice(convert(TRACES / path, kind), MOST_APPLICATIONS))


@rows_and_slow_options
@pytest.mark.parametrize(("path", "kind"), REAL, ids=[kind for _, kind in REAL])
@pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not here")
def test_every_public_trace_is_served(spec: str, path: str, kind: str) -> None:
    machine = load_machine("h200-llama-3.1-8b", ["max_context_tokens=1000000"])
    check_served(spec, recorded(path, kind), machine)
