"""What stands in for an engine in this process, where none is installed: a simulated one with another clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Self

from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.in_process import EngineLimits, LiveStats
from tokencake.policies.controller import Sink
from tokencake.policies.registry import load_policy
from tokencake.policies.replay.replay import began
from tokencake.policies.run_settings import RunSettings
from tokencake.policies.runs.playable import Progress
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.files import load_machine
from tokencake.traces import events as e
from tokencake.traces.apps import Application


class Engine:
    """A `Playable` that is made as an `InProcess` is. Each run is a bit slower than the one before it."""

    step_s: Callable[[str], float] = staticmethod(lambda policy: 0.004)  # by policy
    errors: Callable[[str], Sequence[str]] = staticmethod(lambda policy: ())  # of a policy: what it raised
    ends: BaseException | None = None  # what ends the third run when its second call ends

    def __init__(self, options: EngineOptions) -> None:
        self.machine = load_machine("h100-llama-3.1-8b", [f"gpu_blocks={options.gpu_blocks}"])
        self.limits = EngineLimits(self.machine.gpu_blocks, 16, self.machine.max_context_tokens)
        self.options = options
        self.runs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def info(self) -> dict[str, object]:
        more = {"block_bytes": self.machine.block_bytes, "host_blocks": self.machine.host_blocks}
        return {"vllm": "0.32.0", "model": "tiny", **more, **self.machine.settings()}

    def play(
        self,
        applications: Iterable[Application],
        settings: RunSettings,
        sinks: Sequence[Sink] = (),
        journal: Sink | None = None,
        progress: Progress | None = None,
    ) -> LiveStats:
        self.runs += 1
        slower = replace(self.machine, step_s=type(self).step_s(settings.policy) * (1 + 0.001 * self.runs))
        policy = load_policy(settings.policy, seed=settings.seed)
        if journal is not None:
            journal(began(settings.policy, settings.seed, self.machine.beliefs()))
        stats = simulate(applications, policy, slower, [*sinks, self._ending()], journal=journal, progress=progress)
        errors = type(self).errors(settings.policy) if self.runs > 2 else ()
        return LiveStats(0.0, 1.0, stats.applications, stats.calls, 0, {}, {}, (), errors)

    def _ending(self) -> Callable[[object], None]:
        ended, error = 0, self.ends if self.runs == 3 else None

        def heard(fact: object) -> None:
            nonlocal ended
            ended += isinstance(fact, e.CallFinished)
            if error is not None and ended == 2:
                raise error

        return heard
