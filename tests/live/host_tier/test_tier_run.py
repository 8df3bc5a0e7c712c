"""What a policy hears in the tier, and when: with a made-up connector of vLLM's, whose requests the test moves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from plain_lru import PlainLru

from tokencake.live.engine.control.metadata import KEY
from tokencake.live.engine.session import RunClock
from tokencake.live.host_tier.chunks import Chunks
from tokencake.live.host_tier.run import TierRun, TierSizes
from tokencake.policies.interface import NATIVE, Move, Plan, View
from tokencake.policies.run_settings import RunSettings
from tokencake.traces import events as e

SIZES = TierSizes(group=1, block_tokens=16, block_bytes=4096, gpu_blocks=50, host_blocks=12, max_running=4)


class Asked:
    """Plans what the test wants next, and keeps what it hears."""

    listens_to = frozenset({e.CallFinished, e.HostDropped})

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.wants = NATIVE

    def plan(self, view: View) -> Plan:
        self.heard += view.news
        wanted, self.wants = self.wants, NATIVE
        return wanted


class Engine:
    """Two KV cache groups: a window of one chunk, and full attention."""

    def __init__(self, settings: RunSettings | None = None) -> None:
        groups = [SimpleNamespace(tokens_per_chunk=16, sliding_window_size_in_chunks=size) for size in (1, None)]
        self.states: dict[str, Any] = {}
        side: Any = SimpleNamespace(config=SimpleNamespace(kv_group_configs=groups), _req_status=self.states)
        self.inner, self.policy, self.now_s = PlainLru(), Asked(), 0.0
        self.chunks = Chunks(self.inner)
        clock = RunClock(lambda: self.now_s)
        self.run = TierRun(side, self.chunks, SIZES, settings or RunSettings(), self.policy, clock=clock)

    def arrives(self, name: str, blocks: int, session: str | None = None, **said: object) -> Any:
        """A prompt of so many blocks; its chunks are called by its name and their places."""
        request = SimpleNamespace(
            request_id=name, arrival_time=0.0, num_prompt_tokens=16 * blocks, num_tokens=16 * blocks, max_tokens=8,
            num_output_tokens=0, num_preemptions=0, session_id=session, status=SimpleNamespace(name="RUNNING"),
            sampling_params=SimpleNamespace(extra_args={KEY: said} if said else None),
        )  # fmt: skip
        keys = [[f"{name}.{at}{of}".encode() for at in range(blocks)] for of in ("w", "f")]
        groups = [SimpleNamespace(offload_keys=of_group, num_hit_chunks=0) for of_group in keys]
        self.states[name] = SimpleNamespace(req=request, group_states=groups, num_locally_computed_tokens=0)
        return request

    def stores(self, request: Any) -> None:
        """All of its chunks of full attention, and the last one of the window."""
        self.run.stores(request.request_id)
        window, full = (group.offload_keys for group in self.states[request.request_id].group_states)
        for key in [*full, window[-1]]:
            self.inner.insert(key, key)
            self.chunks.mark_evictable(key)

    def ends(self, request: Any, status: str = "FINISHED_STOPPED", tokens: int = 3) -> None:
        request.num_output_tokens = tokens
        request.status.name = status
        self.run.ended(request.request_id)
        del self.states[request.request_id]

    def told(self) -> list[str]:
        """What the policy has heard of calls and agents, at its next question."""
        self.run._controller.due = True
        self.run._ask_if_due()
        heard, self.policy.heard = self.policy.heard, []
        return [type(fact).__name__ for fact in heard if not isinstance(fact, e.RunStarted)]


def test_a_call_is_told_of_when_it_stores_and_when_it_ends() -> None:
    engine = Engine()
    request = engine.arrives("r", 3, app="a", agent="g", tools=[{"kind": "test"}])
    assert engine.told() == []
    engine.stores(request)
    assert engine.told() == ["AppStarted", "CallArrived", "CallAdmitted"]
    engine.ends(request)
    assert engine.told() == ["FirstToken", "CallFinished", "ToolStarted"]
    engine.ends(engine.arrives("s", 1, app="a", agent="g", last=True))
    assert engine.told() == [
        "ToolReturned", "CallArrived", "CallAdmitted", "FirstToken", "CallFinished", "AppFinished"
    ]  # fmt: skip


def test_arrivals_come_in_their_order_and_strangers_in_between_are_passed_over() -> None:
    engine = Engine()
    for at, session in enumerate(["x", None, "y", "x"]):
        engine.arrives(f"r{at}", 1, session)
    last = engine.arrives("r4", 1, "z")
    engine.stores(last)
    engine.told()
    assert list(engine.run._calls.by_id) == ["session:x/r0", "session:y/r2", "session:x/r3", "session:z/r4"]


def test_preemptions_and_loads_are_seen_afterwards() -> None:
    engine = Engine()
    request = engine.arrives("r", 3, "x")
    engine.stores(request)
    engine.told()
    request.num_preemptions, request.num_tokens = 2, 50
    state = engine.states["r"]
    state.num_locally_computed_tokens, state.group_states[1].num_hit_chunks = 16, 3
    engine.run.stores("r")
    assert engine.told() == 2 * ["CallPreempted", "LoadStarted", "LoadFinished", "CallAdmitted"]


def test_what_a_client_gives_up_is_aborted() -> None:
    engine = Engine()
    for status, tokens in (("FINISHED_ABORTED", 2), ("FINISHED_ERROR", 0)):
        engine.ends(engine.arrives(status, 1, "x"), status, tokens)
        assert engine.told()[-1] == "CallAborted"


def test_what_is_offloaded_is_held_in_all_groups_and_told_in_blocks_of_full_attention() -> None:
    engine = Engine()
    request = engine.arrives("r", 3, "x")
    engine.stores(request)
    engine.policy.wants = Plan(offload=(Move("session:x/main", 99),))
    engine.ends(request)
    assert engine.chunks.num_held == 4  # three, and the window's last
    assert engine.told()[-2:] == ["OffloadStarted", "OffloadFinished"]
    assert engine.run._controller._ledger.view.agents["session:x/main"].host_blocks == 3
    engine.policy.wants = Plan(offload=(Move("session:x/main", 3),), upload=(Move("session:x/main", 3),))
    engine.told()
    assert engine.told() == ["OffloadRefused", "UploadRefused"]
    engine.policy.wants = Plan(forget=("session:x/main",))
    engine.told()
    assert (engine.chunks.num_held, engine.told()) == (0, ["HostDropped"])


def test_room_is_taken_from_who_goes_first_then_from_the_least_recently_used_then_from_the_held() -> None:
    engine = Engine()
    for name in ("a", "b", "c"):
        request = engine.arrives(name, 3, name)
        engine.stores(request)
        if name == "c":
            agents = [f"session:{agent}/main" for agent in "abc"]
            engine.policy.wants = Plan(evict=(agents[1],), offload=tuple(Move(agent, 9) for agent in agents[::2]))
        engine.ends(request)
    names = [key.decode() for key, _ in engine.run.evict(2, {b"b.1f"}) or ()]
    assert names == ["b.2w", "b.2f"]
    names = [key.decode() for key, _ in engine.run.evict(3, set()) or ()]
    assert names == ["b.1f", "b.0f", "a.0f"]  # of the held, a's for the longest time
    assert engine.run.evict(8, set()) is None
    assert engine.told()[-1] == "HostDropped"


def test_a_call_that_is_under_way_when_the_tier_is_emptied_ends_when_the_connector_forgets_it() -> None:
    engine = Engine()
    one, other = engine.arrives("r", 2, "x"), engine.arrives("s", 2, "y")
    engine.stores(one)
    engine.run.cleared()
    engine.told()
    one.status.name, one.num_output_tokens = "FINISHED_STOPPED", 2
    del engine.states["r"]
    engine.stores(other)
    assert engine.told() == ["FirstToken", "CallFinished", "ToolStarted", "CallAdmitted"]


def test_memory_follows_the_requests_that_the_connector_knows() -> None:
    engine = Engine(RunSettings(session_timeout_s=10.0))
    for number in range(200):
        engine.now_s = float(number)
        engine.ends(engine.arrives(f"r{number}", 2, f"s{number}"))
    calls, copies = engine.run._calls, engine.run._copies
    assert len(calls._met) <= 2
    assert len(calls._leaving) <= 2
    assert len(calls.by_request) == 0
    assert len(copies._contexts) <= 12
