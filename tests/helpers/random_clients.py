"""Agents that do anything at any time, on vLLM's real scheduler in virtual time; and small engines for them."""

from __future__ import annotations

import random

from virtual_engine import MOST_ROUNDS, VOCABULARY, Virtual

from tokencake.live.engine.control.metadata import KEY
from tokencake.sim.machine.machine import Machine
from tokencake.sim.machine.timing import PS_PER_S

LONGEST_TOKENS = 60
BLOCK_TOKENS = 4


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
        self.engine = engine
        self.rng = rng
        self.contexts: dict[tuple[str, str], list[int]] = {}  # by application and agent, of idle agents
        self.sent: dict[str, tuple[tuple[str, str], list[int], int]] = {}  # agent, prompt, tokens that are to come
        self.count = 0
        self.operations = {self.send: 5, self.step: 8, self.abort: 1, self.tool_returns: 1, self.leave: 0.3}

    def operate(self) -> None:
        (operation,) = self.rng.choices(list(self.operations), list(self.operations.values()))
        operation()

    def send(self) -> None:
        """A call of a new agent, or of one that is idle, whose context it continues or not."""
        rng = self.rng
        self.count += 1
        idle = list(self.contexts)
        agent = rng.choice(idle) if idle and rng.random() < 0.6 else (f"a{rng.randint(0, 9)}", f"g{self.count}")
        known = self.contexts.pop(agent, [])
        if rng.random() < 0.2:
            known = known[: rng.randint(0, len(known))]
        room = LONGEST_TOKENS - 2 - len(known)
        if room < 1:
            known, room = [], LONGEST_TOKENS - 2
        prompt = known + [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, room))]
        output_tokens = rng.choice((1, 2, LONGEST_TOKENS - len(prompt)))
        name = f"r{self.count}"
        said: dict[str, object] = {"app": agent[0], "agent": agent[1], "call": name}
        if rng.random() < 0.6:
            said["tools"] = [{"kind": "t", "declared_s": rng.choice((0.0, 0.05, 1.0))}]
        extra = {KEY: said} if rng.random() < 0.9 else {}  # some clients say nothing
        self.sent[name] = (agent, prompt, output_tokens)
        self.engine.add(name, prompt, output_tokens, self.engine.adapter.now_s(), extra)

    def step(self) -> None:
        """Some steps of the engine, or some time in which it has nothing to do."""
        for _ in range(self.rng.choice((1, 1, 5, 30))):
            self.run_once()

    def run_once(self) -> None:
        engine = self.engine
        if engine.scheduler.has_requests() or engine.flights:
            before = engine.now_ps
            for name, answer in engine.step():
                agent, prompt, output_tokens = self.sent.pop(name)
                assert len(answer) == output_tokens
                self.contexts[agent] = prompt + answer
            if engine.now_ps == before and not engine.computes:
                engine.now_ps += PS_PER_S // 1000
        else:
            engine.now_ps += PS_PER_S // 100

    def abort(self) -> None:
        """A client disconnects."""
        if self.sent:
            name = self.rng.choice(list(self.sent))
            agent, prompt, _ = self.sent.pop(name)
            self.engine.abort(name)
            self.contexts[agent] = prompt

    def tool_returns(self) -> None:
        """Most never say so."""
        if self.contexts:
            app, agent = self.rng.choice(list(self.contexts))
            self.engine.adapter.tell({"event": "tool_returned", "app": app, "agent": agent})

    def leave(self) -> None:
        """An application ends, whether or not its calls have."""
        app = f"a{self.rng.randint(0, 9)}"
        self.engine.adapter.tell({"event": "app_finished", "app": app})

    def come_to_an_end(self) -> None:
        for _ in range(MOST_ROUNDS):
            if not self.sent:
                return
            self.run_once()
        raise AssertionError(f"never served: {list(self.sent)}")
