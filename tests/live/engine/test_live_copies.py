"""The live engine's copies against the simulator's: the same operations, the same facts and the same caches.

No vLLM is needed: a pool of a few lines does what vLLM's does, and copies end when the test says so.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from plain_vllm_pool import PlainVllmPool

from tokencake.live.engine.memory.copies import Copies as LiveCopies
from tokencake.live.engine.memory.gpu_pool import GpuPool, idle
from tokencake.live.engine.memory.host_pool import HostPool
from tokencake.live.engine.requests import EngineCall as LiveCall
from tokencake.live.engine.requests import LiveAgent
from tokencake.live.engine.vllm_surface import VllmBlock
from tokencake.policies.interface import Move
from tokencake.sim.engine.memory.block_pool import BlockPool
from tokencake.sim.engine.memory.context_tree import Context, ContextTree, Path, full_blocks
from tokencake.sim.engine.memory.copies import Copies as SimCopies
from tokencake.sim.engine.memory.link import Link
from tokencake.sim.engine.requests import EngineCall, SimAgent
from tokencake.sim.machine.presets import presets
from tokencake.sim.machine.timing import PS_PER_S
from tokencake.traces import apps as trace
from tokencake.traces.apps import Prompt, Segment
from tokencake.traces.events import Fact, request_of


class Text(NamedTuple):
    """A context of blocks of one token, as each engine names them."""

    context: Context
    path: Path
    hashes: list[bytes]

    @property
    def blocks(self) -> int:
        return len(self.hashes)


class Agent(NamedTuple):
    """One agent in both engines."""

    sim: SimAgent
    live: LiveAgent

    def set(self, **fields: object) -> None:
        for name, value in fields.items():
            setattr(self.sim, name, value)
            setattr(self.live, name, value)


class Call(NamedTuple):
    """A call that runs or whose blocks are loaded, in both engines."""

    agent: Agent
    text: Text
    sim: EngineCall
    live: LiveCall
    blocks: list[VllmBlock]


class Twins:
    """The simulator's copies and the live engine's, which are told the same."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now_s = 1
        gpu, host = rng.choice((8, 12, 20)), rng.choice((5, 12, 40))
        self.facts: tuple[list[Fact], list[Fact]] = ([], [])
        self.tree = ContextTree()
        self.sim_gpu, self.sim_host = BlockPool(self.tree, gpu, 0), BlockPool(self.tree, host, 1)
        self.link = Link(presets()["a800-qwen2.5-14b"].timing())
        self.sim = SimCopies(self.sim_gpu, self.sim_host, self.link, 1)
        self.sim.report = self.facts[0].append
        self.live_gpu, self.live_host = GpuPool(PlainVllmPool(gpu + 1), 1), HostPool(host)
        self.live = LiveCopies(self.live_gpu, self.live_host, self.facts[1].append)
        self.texts = [self.text() for _ in range(10)]
        self.names = 0
        self.agents = [self.agent() for _ in range(4)]
        self.calls: list[Call] = []

    @property
    def now_ps(self) -> int:
        return self.now_s * PS_PER_S

    def text(self) -> Text:
        """Of few sources, so that texts share beginnings."""
        sources = (self.rng.choice("uvw"), self.rng.choice("uvwxyz"))
        segments = [Segment(source, 0, self.rng.randint(1, 6)) for source in sources[: self.rng.choice((1, 2, 2))]]
        tokens = [(segment.source, at) for segment in segments for at in range(segment.tokens)]
        context = self.tree.follow(self.tree.empty, segments)
        return Text(context, full_blocks(context, 1), [repr(tokens[: at + 1]).encode() for at in range(len(tokens))])

    def agent(self) -> Agent:
        self.names += 1
        return Agent(SimAgent(f"a{self.names}"), LiveAgent(f"a{self.names}", "app"))

    def check(self) -> None:
        """Both have reported and hold the same."""
        assert self.facts[0] == self.facts[1]
        assert self.sim_gpu.num_free_blocks == self.live_gpu.free
        assert self.sim_host.num_free_blocks == self.live_host.free == self.live.host_free
        assert self.sim_gpu.kept_blocks == self.live.held_blocks
        assert len(self.link.under_way) == self.live.under_way
        assert list(self.sim.pinned) == list(self.live.pinned)
        for text in self.texts:
            found = self.live_gpu.found(text.hashes, 0, text.blocks)
            assert self.sim_gpu.cached_prefix(text.path, text.blocks) == (len(found), idle(found))
            host_end = self.live_host.end(text.hashes, 0, text.blocks)
            assert self.sim_host.cached_prefix(text.path, text.blocks)[0] == host_end
            call = self.sim_call("looks", self.agents[0], text)
            for at in range(text.blocks + 1):
                assert self.sim.coming(call, at) == self.live.coming(text.hashes, at, text.blocks)
                assert self.sim.under_way(call, at, at + 1) == self.live.copying(text.hashes, at, at + 1)
        for agent in self.agents:
            assert self.sim.uploading(agent.sim) == self.live.uploading(agent.live)

    # -- calls

    def sim_call(self, name: str, agent: Agent, text: Text) -> EngineCall:
        prompt = Prompt((Segment(name, 0, 1),), tokens=1)
        call = EngineCall(trace.Call(name, "app", agent.live.name, "type", prompt, 1, 1), agent.sim, text.context, 1, 0)
        call.most_hit_blocks = text.blocks
        return call

    def start(self) -> None:
        """A call of an agent starts, if there is room: on what is cached, or on what the host has behind that.

        None does while an upload is on its way to its agent.
        """
        agent, text = self.rng.choice(self.agents), self.rng.choice(self.texts)
        hits, taken = self.sim_gpu.cached_prefix(text.path, text.blocks)
        loads = self.rng.random() < 0.5
        host_end = self.live.host_end(text.hashes, hits, text.blocks)
        end = host_end if loads else text.blocks
        if end - hits + taken > self.live_gpu.free or (loads and end == hits) or self.live.uploading(agent.live):
            return
        name = f"call {self.now_s}"
        sim = self.sim_call(name, agent, text)
        vllm: Any = SimpleNamespace(block_hashes=text.hashes, request_id=name)
        live = LiveCall(request_of(sim.trace_call), vllm, agent.live, self.now_s, 1)
        call = Call(agent, text, sim, live, [])
        assert self.sim.host_hits(sim, hits) == host_end
        if loads:
            busy = self.sim.under_way(sim, hits, end)
            assert busy == self.live.copying(text.hashes, hits, end)
            if busy:
                return
        found = self.live_gpu.found(text.hashes, 0, hits)
        self.live_gpu.hold(found)
        call.blocks.extend([*found, *self.live_gpu.take(end - hits)])
        if loads:
            self.sim.load(sim, hits, end, self.now_ps)
            self.live.load(live, [call.blocks], hits, end, self.now_s, lambda: self.fill(call, hits))
        else:
            sim.hold = self.sim_gpu.touch(text.path, hits)
            self.sim_gpu.allocate(sim.hold, end - hits)
            self.sim_gpu.cache(sim.hold, text.path, end)
            self.fill(call, hits)
        if agent.live.uploads:
            arrived_s = self.rng.randint(0, self.now_s)
            self.sim.taken(agent.sim, arrived_s * PS_PER_S, self.now_ps)
            self.live.taken(agent.live, arrived_s, self.now_s)
        self.sim.unpin(agent.sim)
        self.live.unpin(agent.live)
        self.calls.append(call)

    def fill(self, call: Call, first: int) -> None:
        self.live_gpu.register(call.live.vllm, call.blocks[first:], first)

    def store(self) -> None:
        ready = [call for call in self.calls if not call.live.loading]
        if ready:
            call = self.rng.choice(ready)
            upto = self.rng.randint(0, len(call.blocks))
            self.sim.store(call.sim, upto, self.now_ps, self.now_ps)
            self.live.store(call.live, upto, self.now_s)

    def end(self) -> None:
        """A call ends: its context is its agent's latest, and what the host has of it may count as used."""
        ready = [call for call in self.calls if not call.live.loading]
        if not ready:
            return
        call = self.rng.choice(ready)
        self.calls.remove(call)
        agent, blocks = call.agent, len(call.blocks)
        agent.sim.context = call.text.context
        agent.sim.context_blocks = blocks
        self.live.remember(agent.live, call.live.vllm, blocks)
        if used := self.rng.random() < 0.5:
            self.sim.used(call.sim, blocks)
            self.live.used(call.live, blocks)
        assert call.sim.hold is not None
        self.sim_gpu.free(call.sim.hold, agent.sim.owner)
        self.live_gpu.release(call.blocks)
        self.sim.stops(call.sim)
        self.live.stops(call.live)
        if used:
            self.sim.store_rest(call.sim, blocks, self.now_ps, self.now_ps)
            self.live.store_rest(call.live, blocks, self.now_s)

    # -- what a plan asks

    def offload(self) -> None:
        agent, move = self.moved()
        self.sim.offload(agent.sim, move, self.now_ps)
        self.live.offload(agent.live, move, self.now_s)

    def upload(self) -> None:
        agent, move = self.moved()
        self.sim.upload(agent.sim, move, self.now_ps)
        self.live.upload(agent.live, move, self.now_s)

    def moved(self) -> tuple[Agent, Move]:
        saved = [agent for agent in self.agents if agent.live.host]
        agent = self.rng.choice(saved if saved and self.rng.random() < 0.5 else self.agents)
        blocks = self.rng.choice((99, 99, self.rng.randint(0, 12)))
        return agent, Move(agent.live.name, blocks, keep=self.rng.random() < 0.3)

    def cancel(self) -> None:
        agent = self.rng.choice(self.agents)
        self.sim.cancel(agent.sim, self.now_ps)
        self.live.cancel(agent.live, self.now_s)

    def forget(self) -> None:
        agent = self.rng.choice(self.agents)
        self.sim.forget(agent.sim, self.now_ps)
        self.live.forget(agent.live, self.now_s)

    def pin(self) -> None:
        agent, until_s = self.rng.choice(self.agents), self.now_s + self.rng.randint(1, 20)
        self.sim.pin(agent.sim, until_s * PS_PER_S)
        self.live.pin(agent.live, until_s)

    def unpin(self) -> None:
        agent = self.rng.choice(self.agents)
        self.sim.unpin(agent.sim)
        self.live.unpin(agent.live)

    def evict_first(self) -> None:
        agents = self.rng.sample(self.agents, 3)
        self.sim.evict_first([agent.sim for agent in agents])
        self.live.evict_first([agent.live for agent in agents])

    # -- what happens

    def copied(self) -> None:
        """A copy ends: any that is under way."""
        if self.link.under_way:
            copy = self.rng.choice(sorted(self.link.under_way, key=lambda copy: copy[1]))
            self.link.under_way.remove(copy)
            copy[2](self.now_ps)
            self.live.finish({copy[1]: None}, self.now_s)

    def passes(self) -> None:
        if self.live.pinned:
            assert self.sim.next_unpin_ps() == self.live.next_unpin_s() * PS_PER_S
        self.sim.unpin_expired(self.now_ps)
        self.live.unpin_expired(self.now_s)

    def waits(self) -> None:
        self.rng.choice(self.agents).set(waiting=self.rng.choice((0, 0, 0, 1)))

    def starves(self) -> None:
        self.sim.refusing = self.live.refusing = self.rng.random() < 0.1

    def goes(self) -> None:
        """An agent's application ends, and another agent comes."""
        busy = [call.agent for call in self.calls]
        idle_agents = [agent for agent in self.agents if agent not in busy]
        if idle_agents and self.rng.random() < 0.2:
            agent = self.rng.choice(idle_agents)
            agent.set(gone=True)
            for copies, half, now in ((self.sim, agent.sim, self.now_ps), (self.live, agent.live, self.now_s)):
                copies.cancel(half, now)  # type: ignore[arg-type]  # each half goes with its own copies
                copies.unpin(half)  # type: ignore[arg-type]
                copies.forget(half, now)  # type: ignore[arg-type]
            self.agents[self.agents.index(agent)] = self.agent()


OPERATIONS = (
    *(3 * (Twins.start, Twins.end, Twins.offload, Twins.upload, Twins.copied, Twins.passes)),
    *(2 * (Twins.store, Twins.cancel, Twins.evict_first)),
    *(Twins.forget, Twins.pin, Twins.unpin, Twins.waits, Twins.starves, Twins.goes),
)


def run(seed: int) -> Iterator[Twins]:
    """The twins after each of many operations."""
    rng = random.Random(seed)
    twins = Twins(rng)
    for _ in range(400):
        twins.now_s += 1
        rng.choice(OPERATIONS)(twins)
        yield twins


@pytest.mark.parametrize("seed", range(40))
def test_both_engines_copy_the_same(seed: int) -> None:
    for twins in run(seed):
        twins.check()


def test_those_runs_report_all_that_copies_can_report() -> None:
    seen = Counter(type(fact).__name__ for seed in range(40) for fact in [*run(seed)][-1].facts[1])
    assert sorted(seen) == [
        "HostDropped", "LoadFinished", "LoadStarted", "OffloadFinished", "OffloadRefused", "OffloadStarted",
        "StoreFinished", "StoreRefused", "StoreStarted", "UploadCancelled", "UploadFinished", "UploadRefused",
        "UploadReleased", "UploadStarted", "UploadTaken",
    ]  # fmt: skip
    assert min(seen.values()) >= 10
