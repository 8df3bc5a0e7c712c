"""Whatever policies want and clients do: each call is served, each block comes back, none has what it should not.

The workers of `virtual` check every token that is computed and every copy, so a wrong block fails these tests as well.
"""

from __future__ import annotations

import logging
import random
from dataclasses import replace

import pytest

pytest.importorskip("vllm", reason="needs vLLM: .ci/install-vllm puts it into an environment of its own")

from adversary import Adversary, Hoarder, hard_workload
from virtual_engine import MOST_ROUNDS, VOCABULARY, Virtual

from tokencake.live.metadata import KEY
from tokencake.live.settings import RunSettings
from tokencake.policies.interface import EVERYTHING, Plan, Policy, View
from tokencake.policies.registry import load_policy
from tokencake.sim.machine import PS_PER_S, Machine
from tokencake.traces import events as e

OPERATIONS = 1000
LONGEST_TOKENS = 60
BLOCK_TOKENS = 4


class Raises:
    """Plans like Tokencake, until it does not."""

    hears = EVERYTHING

    def __init__(self, after: int) -> None:
        self._left = after
        self._policy = load_policy("tokencake-time")

    def plan(self, view: View) -> Plan:
        self._left -= 1
        if self._left < 0:
            raise ValueError("out of ideas")
        return self._policy.plan(view)


def machine(rng: random.Random, asynchronous: bool) -> Machine:
    """An engine that its largest call fills, or nearly; a host that is small or absent, behind a slow link."""
    largest_blocks = -(-LONGEST_TOKENS // BLOCK_TOKENS)
    block_bytes = 2**20 * BLOCK_TOKENS
    return Machine(
        name="small",
        gpu_blocks=largest_blocks + rng.choice((0, 0, 1, 5, largest_blocks)),
        block_tokens=BLOCK_TOKENS,
        kv_bytes_per_token=2**20,
        host_gib=rng.choice((0, 1, 5, 40)) * block_bytes / 2**30,
        max_context_tokens=LONGEST_TOKENS,
        step_budget_tokens=rng.choice((8, 64)),
        max_running=rng.choice((1, 3, 8)),
        asynchronous=asynchronous,
        step_s=0.01,
        link_gbps=rng.choice((0.05, 0.5, 10.0)),
    )


class Clients:
    """Agents that do anything at any time. Of those that stay, it is known what they have to get."""

    def __init__(self, engine: Virtual, rng: random.Random) -> None:
        self._engine = engine
        self._rng = rng
        self._contexts: dict[tuple[str, str], list[int]] = {}  # by application and agent, of idle agents
        self._sent: dict[str, tuple[tuple[str, str], list[int], int]] = {}  # agent, prompt, tokens that are to come
        self._count = 0
        self.operations = {self.send: 5, self.step: 8, self.abort: 1, self.tool_returns: 1, self.leave: 0.3}

    def operate(self) -> None:
        (operation,) = self._rng.choices(list(self.operations), list(self.operations.values()))
        operation()

    def send(self) -> None:
        """A call of a new agent, or of one that is idle, whose context it continues or not."""
        rng = self._rng
        self._count += 1
        idle = list(self._contexts)
        agent = rng.choice(idle) if idle and rng.random() < 0.6 else (f"a{rng.randint(0, 9)}", f"g{self._count}")
        known = self._contexts.pop(agent, [])
        if rng.random() < 0.2:
            known = known[: rng.randint(0, len(known))]
        room = LONGEST_TOKENS - 2 - len(known)
        if room < 1:
            known, room = [], LONGEST_TOKENS - 2
        prompt = known + [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, room))]
        output_tokens = rng.choice((1, 2, LONGEST_TOKENS - len(prompt)))
        name = f"r{self._count}"
        said: dict[str, object] = {"app": agent[0], "agent": agent[1], "call": name}
        if rng.random() < 0.6:
            said["tools"] = [{"kind": "t", "declared_s": rng.choice((0.0, 0.05, 1.0))}]
        extra = {KEY: said} if rng.random() < 0.9 else {}  # some clients say nothing
        self._sent[name] = (agent, prompt, output_tokens)
        self._engine.add(name, prompt, output_tokens, self._engine.adapter.now_s(), extra)

    def step(self) -> None:
        """Some steps of the engine, or some time in which it has nothing to do."""
        for _ in range(self._rng.choice((1, 1, 5, 30))):
            self.run_once()

    def run_once(self) -> None:
        engine = self._engine
        if engine.scheduler.has_requests() or engine.flights:
            before = engine.now_ps
            for name, answer in engine.step():
                agent, prompt, output_tokens = self._sent.pop(name)
                assert len(answer) == output_tokens
                self._contexts[agent] = prompt + answer
            if engine.now_ps == before and not engine.computes:
                engine.now_ps += PS_PER_S // 1000
        else:
            engine.now_ps += PS_PER_S // 100

    def abort(self) -> None:
        """A client disconnects."""
        if self._sent:
            name = self._rng.choice(list(self._sent))
            agent, prompt, _ = self._sent.pop(name)
            self._engine.abort(name)
            self._contexts[agent] = prompt

    def tool_returns(self) -> None:
        """Most never say so."""
        if self._contexts:
            app, agent = self._rng.choice(list(self._contexts))
            self._engine.adapter.tell({"event": "tool_returned", "app": app, "agent": agent})

    def leave(self) -> None:
        """An application ends, whether or not its calls have."""
        app = f"a{self._rng.randint(0, 9)}"
        self._engine.adapter.tell({"event": "app_finished", "app": app})

    def come_to_an_end(self) -> None:
        for _ in range(MOST_ROUNDS):
            if not self._sent:
                return
            self.run_once()
        raise AssertionError(f"never served: {list(self._sent)}")


def begin(engine: Virtual, policy: Policy, facts: list[object]) -> None:
    engine.adapter.load_policy = lambda spec, seed: policy
    engine.adapter.begin(RunSettings(costs=engine.machine.beliefs()), [facts.append])


def end(engine: Virtual) -> None:
    """End the run; what was held is free again, but for copies under way, and those end."""
    engine.adapter.end()
    engine.come_to_rest()
    assert engine.leaked_blocks() == 0
    assert engine.adapter.copies.host_free == engine.machine.host_blocks
    assert engine.adapter.copies.held_blocks == 0


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("seed", range(12))
def test_a_thousand_random_operations(seed: int, asynchronous: bool) -> None:
    rng = random.Random(seed)
    engine = Virtual(machine(rng, asynchronous))
    policy: Policy = Adversary(seed) if seed % 3 else load_policy("tokencake")
    facts: list[object] = []
    begin(engine, policy, facts)
    clients = Clients(engine, rng)
    for _ in range(OPERATIONS):
        clients.operate()
    clients.come_to_an_end()
    end(engine)
    assert not engine.adapter.errors
    assert {type(fact) for fact in facts} >= {e.CallAborted, e.CallFinished, e.AppFinished, e.ToolStarted}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("seed", range(40))
def test_every_application_finishes_under_a_policy_that_wants_nonsense(seed: int, asynchronous: bool) -> None:
    applications, hard = hard_workload(seed)
    engine = Virtual(replace(hard, asynchronous=asynchronous))
    engine.adapter.load_policy = lambda spec, seed: Adversary(seed)
    facts: list[object] = []
    engine.play(applications, RunSettings(policy="adversary", seed=seed), [facts.append])
    assert sum(isinstance(fact, e.CallFinished) for fact in facts) == sum(len(app.calls) for app in applications)
    assert engine.leaked_blocks() == 0


@pytest.mark.parametrize("seed", range(6))
def test_a_policy_that_hoards_all_memory_starves_nobody(seed: int) -> None:
    applications, hard = hard_workload(seed)
    engine = Virtual(hard)
    engine.adapter.load_policy = lambda spec, seed: Hoarder()
    facts: list[object] = []
    engine.play(applications, RunSettings(policy="hoarder"), [facts.append])
    assert sum(isinstance(fact, e.CallFinished) for fact in facts) == sum(len(app.calls) for app in applications)
    assert engine.leaked_blocks() == 0


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("after", [0, 1, 20, 150])
def test_the_engine_goes_on_without_a_policy_that_raises(
    after: int, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(after)
    engine = Virtual(machine(rng, asynchronous))
    facts: list[object] = []
    begin(engine, Raises(after), facts)
    clients = Clients(engine, rng)
    with caplog.at_level(logging.ERROR, "tokencake.live.adapter"):
        for _ in range(OPERATIONS):
            clients.operate()
    clients.come_to_an_end()
    end(engine)
    (error,) = engine.adapter.errors
    assert "plan() raised ValueError: out of ideas (test_liveness.py:" in error
    told = [record for record in caplog.records if record.name == "tokencake.live.adapter"]
    assert [record.levelname for record in told] == ["ERROR"]


def test_an_application_of_which_nothing_is_heard_ends_in_the_end() -> None:
    """A tool never returns, and its agent's client has gone: without an end, its host copy would stay for ever."""
    rng = random.Random(1)
    engine = Virtual(machine(rng, False))
    facts: list[object] = []
    engine.adapter.load_policy = lambda spec, seed: load_policy("vllm")
    engine.adapter.begin(RunSettings(app_timeout_s=5.0), [facts.append])
    said = {"app": "a", "agent": "g", "tools": [{"kind": "t"}]}
    engine.add("r1", [1, 2, 3], 2, 0.0, {KEY: said})
    engine.run_until(lambda: bool(engine.adapter.steps > 1))
    engine.now_ps += 6 * PS_PER_S
    engine.add("r2", [1, 2, 3], 2, engine.adapter.now_s(), {KEY: {"app": "b", "agent": "g"}})
    engine.run_until(lambda: any(isinstance(fact, e.AppFinished) for fact in facts))
    (ended,) = [fact for fact in facts if isinstance(fact, e.AppFinished)]
    assert ended.app == "a"
