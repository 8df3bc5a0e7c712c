"""Small random workloads that make the KV cache's rules meet: forks, joins, duplicates, whole blocks, little memory."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import NamedTuple

from tokencake.sim.machine.kv_groups import KvGroup
from tokencake.sim.machine.machine import Machine
from tokencake.traces.apps import Application, Call, Prompt, Segment, Tool
from tokencake.traces.generate.workloads import code_writer

STEP_S = 0.01


class Workload(NamedTuple):
    applications: tuple[Application, ...]
    machine: Machine


def workload(seed: int) -> Workload:
    """The same seed always gives the same workload. Its machine can hold its largest call, often barely."""
    rng = random.Random(seed)
    block_tokens = rng.choice((1, 2, 4, 4, 8, 16))
    make = _Maker(rng, block_tokens)
    applications = make.applications(rng.randint(1, 7))
    return Workload(applications, _machine(rng, block_tokens, applications, make.ticks))


def capped(seed: int) -> Workload:
    """`workload(seed)` on a machine that cuts long prompts short in steps that others are in."""
    made = workload(seed)
    rng = random.Random(f"capped {seed}")
    budget_tokens = rng.choice((8, 16, 33, 64, 8192))
    machine = replace(
        made.machine,
        step_budget_tokens=budget_tokens,
        max_running=min(rng.choice((2, 3, 5, 1024)), budget_tokens),
        long_prefill_token_threshold=min(rng.choice((1, 2, 3, 5, 8, 20)), made.machine.max_context_tokens),
    )
    return Workload(made.applications, machine)


def hosted(seed: int) -> Workload:
    """Like those of the other kinds, on a machine whose host has about as much to do in a step as the device.

    Where it works beside the device, many a stretch of decoding begins with steps of the host's time.
    """
    made = workload(seed) if seed % 2 else capped(seed)
    rng = random.Random(f"hosted {seed}")
    machine = replace(
        made.machine,
        asynchronous=rng.random() < 0.7,
        context_token_s=STEP_S / 10,
        host_call_s=rng.choice((0.0, STEP_S / 10, STEP_S, 3 * STEP_S)),
        host_token_s=rng.choice((0.0, STEP_S, rng.uniform(2, 8) * STEP_S, rng.uniform(2, 8) * STEP_S)),
    )
    return Workload(made.applications, machine)


def windowed(seed: int) -> Workload:
    """Like those of the other kinds, on a machine of a mixture of experts with windows that many a call fills."""
    made = hosted(seed) if seed % 2 else capped(seed)
    rng = random.Random(f"windowed {seed}")
    machine = replace(
        made.machine,
        floor_s=STEP_S / 10,
        experts_s=STEP_S,
        experts=8,
        experts_per_token=rng.choice((1, 2, 8)),
        prefill_context_token_s=rng.choice((0.0, rng.uniform(1e-5, 1e-3))),
        window_tokens=rng.choice((1, 3, 8, 20, 64)),
        window_attention_s=rng.uniform(1e-5, 1e-3),
        window_context_token_s=rng.uniform(1e-5, 1e-3),
    )
    return Workload(made.applications, machine)


def hybrid(seed: int) -> Workload:
    """Like those of the other kinds, on a machine with several KV cache groups. Its memory is often little.

    The patterns of layers are those of models that are served, their windows small: 2 groups as gpt-oss has them, 4 as
    Llama-4 and Qwen3-Next, 7 as Gemma-3, and mixtures that no model has yet.
    """
    made = workload(seed) if seed % 3 else capped(seed)
    rng = random.Random(f"hybrid {seed}")
    size = made.machine.block_tokens
    window = rng.choice((2, size, size + 1, 2 * size, rng.randint(2, 60)))
    sliding = KvGroup("sliding_window", max(2, window))
    chunked = KvGroup("chunked_local", size * rng.choice((1, 2, 4, rng.randint(1, 8))))
    full, mamba = KvGroup("full"), KvGroup("mamba")
    groups = rng.choice(
        (
            (full, sliding),
            (full, sliding),
            (full, *3 * (chunked,)),
            (full, *3 * (mamba,)),
            (*3 * (mamba,), full),
            (full, *6 * (sliding,)),
            (full, sliding, KvGroup("sliding_window", max(2, window // 2))),
            (full, full, mamba, sliding),
        )
    )
    calls = [call for application in made.applications for call in application.calls]
    longest = max(call.prompt_tokens + call.output_tokens for call in calls)
    largest_blocks = sum(_most_blocks(group, longest, size) for group in groups)
    interval = rng.choice((0, 0, 0, -1, size, 2 * size, 3 * size))
    if not any(group.kind in ("sliding_window", "mamba") for group in groups):
        interval = max(interval, -1) if interval <= 0 else 0
    machine = replace(
        made.machine,
        gpu_blocks=largest_blocks + rng.choice((0, 1, 2, largest_blocks // 2, largest_blocks, 3 * largest_blocks)),
        kv_groups=groups,
        prefix_cache_retention_interval=interval,
    )
    return Workload(made.applications, machine)


def _most_blocks(group: KvGroup, tokens: int, block_tokens: int) -> int:
    """Enough for a call of so many tokens, however it is computed."""
    return 2 if group.kind == "mamba" else -(-tokens // block_tokens) + (group.kind != "full")


def published(asynchronous: bool, qps: float = 1.0) -> Workload:
    """The published code-writer benchmark on a machine like the published one.

    The costs are fixed here: they need not follow better fits of the preset, and golden files must not change with it.
    """
    machine = Machine(
        name="published",
        gpu_blocks=3049,
        kv_bytes_per_token=196_608,
        host_gib=0.0,
        max_context_tokens=32_768,
        asynchronous=asynchronous,
        step_s=20.6e-3,
        prefill_token_s=129e-6,
        decode_call_s=54e-6,
        context_token_s=120e-9,
        link_gbps=25.0,
        client_s=0.075,
    )
    return Workload(tuple(code_writer(24, qps)), machine)


def _machine(rng: random.Random, block_tokens: int, applications: tuple[Application, ...], ticks: bool) -> Machine:
    calls = [call for application in applications for call in application.calls]
    longest = max(call.prompt_tokens + call.output_tokens for call in calls)
    largest_blocks = -(-(longest - 1) // block_tokens)
    budget_tokens = rng.choice((7, 16, 33, 64, 8192))
    return Machine(
        name="small",
        gpu_blocks=largest_blocks + rng.choice((0, 1, 2, largest_blocks // 2, largest_blocks, 3 * largest_blocks)),
        block_tokens=block_tokens,
        kv_bytes_per_token=1,
        host_gib=0.0,
        max_context_tokens=longest,
        step_budget_tokens=budget_tokens,
        max_running=min(rng.choice((1, 2, 3, 5, 1024)), budget_tokens),  # vLLM asks for no more than the budget
        asynchronous=rng.random() < 0.5,
        step_s=STEP_S,
        prefill_token_s=0.0 if ticks else rng.uniform(1e-5, 1e-3),
        attention_s=0.0 if ticks else rng.uniform(0.0, 1e-6),
        decode_call_s=0.0 if ticks else rng.uniform(0.0, 1e-4),
        context_token_s=0.0 if ticks else rng.uniform(0.0, 1e-5),
        link_gbps=1.0,
        client_s=rng.choice((0.0, 0.0, STEP_S, 0.0037)),
    )


class _Maker:
    """Makes the applications of one workload."""

    def __init__(self, rng: random.Random, block_tokens: int) -> None:
        self._rng = rng
        self._block_tokens = block_tokens
        self.ticks = rng.random() < 0.4  # steps and gaps are whole multiples of one time: arrivals meet step ends
        self._crowded = rng.random() < 0.5  # many calls at once with long answers: they run out of memory together
        self._shared = [Segment(f"/shared-{n}", 0, self._length()) for n in range(rng.randint(1, 3))]
        self._alone = rng.random() < 0.2  # nothing private in prompts: many are the same to the last token

    def applications(self, count: int) -> tuple[Application, ...]:
        made: list[Application] = []
        arrival_s = 0.0
        for n in range(count):
            if made and self._rng.random() < 0.2:
                made.append(_copy(made[-1], f"a{n}", arrival_s))
            else:
                made.append(Application(f"a{n}", arrival_s, self._calls(f"a{n}")))
            arrival_s += 0.0 if self._crowded else self._seconds()
        return tuple(made)

    def _calls(self, app: str) -> tuple[Call, ...]:
        calls: list[Call] = []
        for n in range(self._rng.randint(1, 8)):
            awaited = self._rng.choice((0, 0, 0, 1) if self._crowded else (0, 1, 1, 1, 2))
            after = self._rng.sample(calls, min(len(calls), awaited))
            calls.append(self._call(f"{app}/c{n}", app, tuple(after)))
        return tuple(calls)

    def _call(self, call_id: str, app: str, after: tuple[Call, ...]) -> Call:
        short, long = (1, 2, self._block_tokens, self._rng.randint(1, 40)), (self._rng.randint(20, 60),)
        output_tokens = self._rng.choice(long if self._crowded else short)
        return Call(
            id=call_id,
            app=app,
            agent=call_id,
            agent_type="agent",
            prompt=self._continued(call_id, after) if after and self._rng.random() < 0.8 else self._fresh(call_id),
            output_tokens=output_tokens,
            max_output_tokens=output_tokens,
            after=tuple(call.id for call in after),
            pause_s=self._seconds() if self._rng.random() < 0.2 else 0.0,
            tools=(Tool("tool", self._seconds()),) if self._rng.random() < 0.4 else (),
        )

    def _fresh(self, call_id: str) -> Prompt:
        shared = self._rng.choice(self._shared)
        segments = [shared._replace(tokens=self._rng.choice((shared.tokens, self._rng.randint(1, shared.tokens))))]
        if not self._alone and self._rng.random() < 0.7:
            segments.append(Segment(f"{call_id}.private", 0, self._length()))
        return Prompt(tuple(segments), tokens=sum(segment.tokens for segment in segments))

    def _continued(self, call_id: str, after: tuple[Call, ...]) -> Prompt:
        """The context of what it waits for, whole or in part; a join adds the other branches' answers."""
        first, others = after[0], after[1:]
        whole = first.prompt_tokens + first.output_tokens
        keep = whole if self._rng.random() < 0.7 else self._rng.randint(1, whole)
        segments = [Segment(other.id, 0, other.output_tokens) for other in others]
        if self._rng.random() < 0.6:
            segments.append(Segment(f"{call_id}.result", 0, self._length()))
        tokens = keep + sum(segment.tokens for segment in segments)
        return Prompt(tuple(segments), extends=first.id, keep_tokens=keep, tokens=tokens)

    def _length(self) -> int:
        """Often whole blocks: then a prompt's last block has to be computed again."""
        if self._rng.random() < 0.5:
            return self._block_tokens * self._rng.randint(1, 6)
        return self._rng.randint(1, 20 if self._crowded else 60)

    def _seconds(self) -> float:
        if self.ticks:
            return STEP_S * self._rng.choice((0, 0, 1, 2, 7, 30))
        return self._rng.choice((0.0, self._rng.uniform(0.0, 0.05), self._rng.uniform(0.0, 1.0)))


def _copy(application: Application, app: str, arrival_s: float) -> Application:
    """Another application with the same prompts as far as they do not hold answers."""
    old = f"{application.id}/"
    answers = {call.id for call in application.calls}

    def renamed(name: str) -> str:
        return f"{app}/{name.removeprefix(old)}" if name.startswith(old) else name

    def call_copy(call: Call) -> Call:
        prompt = call.prompt
        segments = tuple(
            segment._replace(source=renamed(segment.source)) if segment.source in answers else segment
            for segment in prompt.segments
        )
        extends = renamed(prompt.extends) if prompt.extends is not None else None
        return Call(
            id=renamed(call.id),
            app=app,
            agent=renamed(call.agent),
            agent_type=call.agent_type,
            prompt=Prompt(segments, extends, prompt.keep_tokens, prompt.tokens),
            output_tokens=call.output_tokens,
            max_output_tokens=call.max_output_tokens,
            after=tuple(renamed(name) for name in call.after),
            pause_s=call.pause_s,
            tools=call.tools,
        )

    return Application(app, arrival_s, tuple(call_copy(call) for call in application.calls))
