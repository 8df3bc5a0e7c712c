"""What measuring a simulated engine gives: steps and copies of a machine whose constants are known, with noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokencake.policies.field.vllm import Vllm
from tokencake.sim.calibration.engine_info import MachineLimits
from tokencake.sim.calibration.samples import HostShare, StepSample
from tokencake.sim.engine.scheduling.step import Scheduled
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.machine import Machine
from tokencake.sim.machine.timing import PS_PER_S
from tokencake.traces import events as e
from tokencake.traces.apps import Application

UNEXPLAINED_S = 5e-4  # of a step's time, what the host takes whatever is in it


def limits_of(machine: Machine) -> MachineLimits:
    return MachineLimits(
        gpu_blocks=machine.gpu_blocks,
        block_tokens=machine.block_tokens,
        block_bytes=machine.block_bytes,
        host_blocks=machine.host_blocks,
        max_context_tokens=machine.max_context_tokens,
        step_budget_tokens=machine.step_budget_tokens,
        max_running=machine.max_running,
        long_prefill_token_threshold=machine.long_prefill_token_threshold,
        asynchronous=machine.asynchronous,
    )


def steps_of(application: Application, machine: Machine) -> list[StepSample]:
    """The steps of an application under `vllm`, each with its true time."""
    computed: dict[str, int] = {}
    prompts = {call.id: call.prompt_tokens for call in application.calls}
    steps: list[StepSample] = []
    came: list[str] = []  # calls that were admitted since the last step

    def admitted(fact: object) -> None:
        if isinstance(fact, e.CallAdmitted):
            assert not fact.resumed_tokens, "the probes leave room for every call"
            computed[fact.call] = fact.gpu_hit_tokens
            came.append(fact.call)

    def scheduled(step: Scheduled) -> None:
        chunks, contexts, completed = [], [], 0
        for call, tokens in step.tokens.items():
            before = computed[call]
            computed[call] += tokens
            if before >= prompts[call]:
                contexts.append(before)
            else:
                chunks.append((tokens, before))
                completed += before + tokens == prompts[call]
        attended = sum(tokens * before + tokens * (tokens + 1) // 2 for tokens, before in chunks)
        timing, new = machine.timing(), len(came)
        came.clear()
        seconds = timing.of_step(chunks, contexts, admitted=new, completed=completed) / PS_PER_S
        prefill = sum(tokens for tokens, _ in chunks)
        sampled = len(contexts) + completed
        host_ps = timing.of_host(new, sampled)
        host = HostShare(UNEXPLAINED_S + host_ps / PS_PER_S, new, sampled) if host_ps else None
        steps.append(StepSample(seconds, prefill, attended, len(contexts), sum(contexts), host))

    simulate([application], Vllm(), machine, [admitted], one_by_one=True, step_log=scheduled)
    return steps


def noisy(steps: Sequence[StepSample], seed: int, share: float = 0.05, outliers: float = 0.0) -> list[StepSample]:
    """The steps' times with errors of this standard deviation; some `outliers` take three times as long."""
    rng = np.random.default_rng(seed)
    factors = np.exp(share * rng.standard_normal(len(steps))) * np.where(rng.random(len(steps)) < outliers, 3.0, 1.0)
    return [step._replace(seconds=step.seconds * float(factor)) for step, factor in zip(steps, factors, strict=True)]
