"""A policy's host half inside vLLM's own CPU tier: vLLM's scheduler, connector and tier in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from differential.offloading import Offloading
from differential.workloads import Workload, workload
from trace_files import applications
from vllm.sampling_params import SamplingParams
from vllm.v1.kv_offload.base import make_offload_key
from vllm.v1.request import Request

from tokencake.live.cache_policy import TokencakeCachePolicy
from tokencake.live.engine.control.callers import session_app
from tokencake.live.engine.control.metadata import KEY, to_metadata
from tokencake.live.engine.control.versions import check_vllm
from tokencake.live.engine.vllm_surface import VllmRequest
from tokencake.live.host_tier import offload_surface as surface
from tokencake.policies.replay.replay import replay_file
from tokencake.sim.machine.engine_versions import simulated_version
from tokencake.sim.machine.kv_groups import KvGroup
from tokencake.sim.machine.machine import Machine
from tokencake.sim.machine.timing import PS_PER_S
from tokencake.traces import events as e
from tokencake.traces.apps import Call
from tokencake.traces.errors import EngineError
from tokencake.traces.events import request_of

ENGINE_VERSION = simulated_version(check_vllm())
OURS = {"eviction_policy": "TokencakeCachePolicy", "cache_policy_module_path": "tokencake.live.cache_policy"}


class Tier(Offloading):
    """With our cache policy, told whose the calls are by metadata, or by vLLM's session id."""

    def __init__(self, made: Workload, monkeypatch: pytest.MonkeyPatch, policy: str, **settings: Any) -> None:
        self.sessions = bool(settings.pop("sessions", False))
        super().__init__(made, "contexts", monkeypatch, OURS, {"tokencake": {"policy": policy, **settings}})
        found = self.side.manager._policy
        assert isinstance(found, TokencakeCachePolicy)
        self.policy = found
        self.tier = found.tokencake
        self.tier._clock.read = lambda: self.now_ps / PS_PER_S
        self.tier._clock.restart()
        self.facts: list[Any] = []
        self.tier._controller._sinks = (*self.tier._controller._sinks, self.facts.append)

    def add(self, call: Call, now_ps: int) -> None:
        engine = self.engine
        said = {} if self.sessions else {KEY: to_metadata(request_of(call))}
        sampling = SamplingParams(max_tokens=call.output_tokens, ignore_eos=True, detokenize=False, extra_args=said)
        engine._answers[call.id] = engine._tokens.answer(call)
        arrived_s = self.tier._clock.start_wall_s + now_ps / PS_PER_S
        engine.scheduler.add_request(
            Request(
                call.id, engine._tokens.prompt(call), sampling, None, arrival_time=arrived_s,
                block_hasher=engine._hasher, session_id=call.agent if self.sessions else None,
            )
        )  # fmt: skip

    def keys_of(self, call: str) -> list[bytes]:
        return [make_offload_key(content, 0) for content in self.keys[call]]


def small(seed: int) -> Workload:
    """A workload on a machine whose host holds little."""
    made = workload(seed)
    return Workload(made.applications, machine(made.machine, 60))


def machine(like: Machine, host_blocks: int, **settings: Any) -> Machine:
    """A synchronous one whose host holds so many blocks."""
    made = replace(like, asynchronous=False, engine_version=ENGINE_VERSION, kv_bytes_per_token=2**20, **settings)
    return replace(made, link_gbps=1e6, host_gib=host_blocks * made.block_bytes / 2**30)


def crowd(folder: Path, others: Sequence[KvGroup] = (), host_blocks: int = 60) -> Workload:
    """A conversation whose tool runs for a minute, and meanwhile others that fill the GPU and the host."""
    tool = {"kind": "test", "duration_s": 60.0, "declared_s": 60.0, "result": 8}
    waits = [
        {"id": "c0", "prompt": [["task", 96]], "output": 8, "tools": [tool]},
        {
            "id": "c1",
            "agent": "c0",
            "type": "c0",
            "after": ["c0"],
            "extends": "c0",
            "prompt": [["result", 8]],
            "output": 8,
        },
    ]
    lines: list[dict[str, object]] = [{"id": "waits", "arrival_s": 0.0, "calls": waits}]
    for number in range(12):
        call = {"id": "c0", "prompt": [[f"question{number}", 96]], "output": 8}
        lines.append({"id": f"other{number}", "arrival_s": 5.0 + 4 * number, "calls": [call]})
    groups = (KvGroup("full"), *others)
    sizes: dict[str, Any] = {"gpu_blocks": 20 * len(groups), "block_tokens": 8, "kv_groups": groups}
    return Workload(tuple(applications(folder, *lines)), machine(workload(0).machine, host_blocks, **sizes))


def loaded(tier: Tier, call: str) -> int:
    """How many blocks a call found in the tier."""
    return sum(fact.blocks for fact in tier.facts if isinstance(fact, e.LoadStarted) and fact.call == call)


def test_a_policy_that_wants_nothing_is_vllms_lru(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(5):
        made = small(seed)
        with monkeypatch.context() as patched:
            plain = Offloading(made, "contexts", patched)
            plain.run()
        with monkeypatch.context() as patched:
            ours = Tier(made, patched, "vllm")
            ours.run()
        assert ours.copied == plain.copied
        assert list(ours.side.manager._policy._inner.chunks) == list(plain.side.manager._policy.chunks)
        assert ours.tier.errors == []


@pytest.mark.parametrize(
    ("policy", "blocks"), [("vllm", 0), ("tokencake", 12), ("native-offload:evict=arc", 0), ("tokencake-time", 12)]
)
def test_the_context_that_a_tool_is_waited_for_with_stays(
    policy: str, blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under pressure LRU gives it up; a policy that holds it finds it when the tool has returned."""
    tier = Tier(crowd(tmp_path), monkeypatch, policy)
    tier.run()
    assert (loaded(tier, "waits/c1"), tier.tier.errors) == (blocks, [])


@pytest.mark.parametrize(
    ("others", "blocks"),
    [
        ([KvGroup("sliding_window", 16)], 11),
        (6 * [KvGroup("sliding_window", 16)], 11),
        (3 * [KvGroup("chunked_local", 32)], 12),
        (3 * [KvGroup("mamba")], 11),
    ],
    ids=["2 groups", "7 groups", "chunked", "mamba"],
)
def test_what_is_held_of_a_hybrid_is_found_whole(
    others: list[KvGroup], blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM loads what all groups have. Where a group has a window, the last token's block is computed anew."""
    made = crowd(tmp_path, others, host_blocks=100)
    for policy, found in (("vllm", 0), ("tokencake", blocks)):
        with monkeypatch.context() as patched:
            tier = Tier(made, patched, policy)
            tier.run()
        assert (loaded(tier, "waits/c1"), tier.tier.errors) == (found, [])


USERS = """
from tokencake import Plan
from tokencake.traces.events import CallFinished

class Loud:
    \"\"\"Everything of the applications that are called loud goes first; and it wants what no tier can do.\"\"\"

    listens_to = frozenset({CallFinished})

    def plan(self, view):
        loud = tuple(name for name, agent in view.agents.items() if agent.app.startswith("loud"))
        return Plan(admit=(), evict=loud, pin={name: view.now_s + 1000 for name in view.agents})
"""


def test_a_users_policy_says_who_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five contexts fit, and LRU would give up the first that came."""
    calls = [{"id": "c0", "prompt": [["task", 96]], "output": 8}]
    names = ["quiet0", "quiet1", "loud0", "loud1", "quiet2", "quiet3", "quiet4"]
    lines = [{"id": name, "arrival_s": 2.0 * at, "calls": calls} for at, name in enumerate(names)]
    made = Workload(
        tuple(applications(tmp_path, *lines)), machine(workload(0).machine, 60, gpu_blocks=20, block_tokens=8)
    )
    file = tmp_path / "mine.py"
    file.write_text(USERS)
    tier = Tier(made, monkeypatch, f"{file}:Loud")
    tier.run()
    there = {name for name in names if all(key in tier.policy._chunks for key in tier.keys_of(f"{name}/c0")[:12])}
    assert (there, tier.tier.errors) == (set(names) - {"loud0", "loud1"}, [])


def test_sessions_are_agents_of_the_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are stalled, nobody knows for how long, and all are held: the one that is held for the longest time goes."""
    tier = Tier(crowd(tmp_path), monkeypatch, "tokencake", sessions=True)
    tier.run()
    agent = f"{session_app('waits/c0')}/main"
    kinds = (e.ToolStarted, e.HostDropped, e.ToolReturned)
    told = [type(fact).__name__ for fact in tier.facts if isinstance(fact, kinds) and fact.agent == agent]
    assert told == ["ToolStarted", "HostDropped", "ToolReturned"]
    assert len({fact.agent for fact in tier.facts if isinstance(fact, e.ToolStarted)}) == 13
    assert (loaded(tier, "waits/c1"), tier.tier.errors) == (0, [])


@pytest.mark.parametrize("policy", ["tokencake", "native-offload:evict=arc", "kvflow", "mori", "infercept"])
def test_what_a_run_in_the_tier_records_is_replayed(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        events = tmp_path / f"{seed}.jsonl"
        with monkeypatch.context() as patched:
            tier = Tier(small(seed), patched, policy, events=str(events))
            tier.run()
        assert tier.tier.errors == []
        setup, parity = replay_file(events.with_name(f"{events.name}.partial"))
        assert (setup.policy, parity.equal) == (policy, True)


def test_a_policy_that_raises_leaves_vllms_lru(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text(USERS.replace("return Plan(", "raise KeyError(").replace("admit=(), evict=loud, pin", "loud) #"))
    made = crowd(tmp_path)
    with monkeypatch.context() as patched:
        plain = Offloading(made, "contexts", patched)
        plain.run()
    tier = Tier(made, monkeypatch, f"{file}:Loud")
    tier.run()
    (error,) = tier.tier.errors
    assert "plan() raised KeyError" in error
    assert tier.copied == plain.copied


def test_an_emptied_tier_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = Tier(crowd(tmp_path), monkeypatch, "native-offload:evict=arc")
    tier.run()
    held = tier.policy._chunks.num_held
    tier.side.manager.reset_cache()
    dropped = sum(fact.blocks for fact in tier.facts if isinstance(fact, e.HostDropped))
    saved = sum(fact.upto_blocks for fact in tier.facts if isinstance(fact, e.OffloadFinished))
    assert held > 0
    assert tier.policy._chunks.num_held == 0
    assert dropped == saved


def test_nobody_else_makes_it() -> None:
    with pytest.raises(EngineError, match="expected to be made by vLLM's OffloadingConnector"):
        TokencakeCachePolicy(10)


def test_vllm_has_what_is_leaned_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is told by its name."""
    tier = Tier(crowd(tmp_path), monkeypatch, "vllm")
    tier.add(tier.applications[0].calls[0], 0)
    (state,) = tier.side._req_status.values()
    found = {
        surface.VllmOffloadScheduler: tier.side,
        surface.VllmOffloadConfig: tier.side.config,
        surface.VllmGroupOffloadConfig: tier.side.config.kv_group_configs[0],
        surface.VllmOffloadState: state,
        surface.VllmOffloadGroup: state.group_states[0],
        surface.VllmReqContext: state.req_context,
        surface.VllmCachePolicy: tier.policy._inner,
    }
    leaned_on = {kind for kind in vars(surface).values() if isinstance(kind, type) and Protocol in kind.__bases__}
    assert found.keys() == leaned_on - {VllmRequest}
    named = {(kind, name) for kind in found for name in [*kind.__annotations__, *vars(kind)] if is_member(name)}
    missing = [f"{kind.__name__}.{name}" for kind, name in named if not hasattr(found[kind], name)]
    assert missing == []


def is_member(name: str) -> bool:
    return not name.startswith("__") and name not in ("_abc_impl", "_is_protocol", "_is_runtime_protocol")
