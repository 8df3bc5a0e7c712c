"""What a client costs that lives in the process of its engine: a call's tokens, sending it, and the time between steps.

    python benchmarks/client.py [--policy P] [--running N] [--context TOKENS] [--calls N] [--answer TOKENS]

Plays conversations on a tiny model on a CPU, as many at once as `--running` says, each some calls that go on with one
context. Times are of the client's thread alone (CPU time, so that a busy machine matters little), in microseconds:
for each call the ids of its prompt, vLLM's taking it in, and what else is ours; for each step what lies between the end
of one and the begin of the next, without all that: vLLM's handing out of what came, and our loop. Needs vLLM.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from exits import exit_code

from tokencake.live.client.engine_options import EngineOptions
from tokencake.live.client.in_process import InProcess
from tokencake.live.client.play import Player
from tokencake.live.client.start.launch import Started
from tokencake.live.client.tokens import Tokens
from tokencake.policies.run_settings import RunSettings
from tokencake.traces.apps import Application, Call, Prompt, Segment

BLOCK_TOKENS = 32
ADDED_TOKENS = 100  # to a conversation by each call but the first
ROOM = 1.3  # blocks for all contexts, and some more


@dataclass
class Watch:
    """CPU time inside functions: all of it, and for each use."""

    uses: dict[str, list[int]] = field(default_factory=dict)

    def at(self, place: Any, method: str) -> None:
        """Put a stopwatch at a method of a class or an object."""
        function: Callable[..., Any] = getattr(place, method)
        spent = self.uses.setdefault(method, [])
        clock = time.thread_time_ns

        def watched(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                spent.append(clock() - began)

        setattr(place, method, watched)

    def total(self, *methods: str) -> int:
        return sum(sum(self.uses[method]) for method in methods)


def conversations(running: int, context_tokens: int, calls: int, answer_tokens: int) -> list[Application]:
    """All of them begin at once. Each call continues the one before it."""
    applications = []
    for number in range(running):
        app = f"app{number}"
        made: list[Call] = []
        kept = 0
        for at in range(calls):
            name = f"{app}/{at}"
            own = ADDED_TOKENS if at else context_tokens
            extends = made[-1].id if made else None
            prompt = Prompt((Segment(f"{name}.prompt", 0, own),), extends, kept, kept + own)
            after = (extends,) if extends is not None else ()
            made.append(Call(name, app, f"{app}/a", "a", prompt, answer_tokens, answer_tokens, after=after))
            kept += own + answer_tokens
        applications.append(Application(app, 0.0, tuple(made)))
    return applications


def main() -> None:
    """Print what a call and a step cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="vllm")
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--context", type=int, default=2_000)
    parser.add_argument("--calls", type=int, default=4, help="of a conversation")
    parser.add_argument("--answer", type=int, default=24)
    arguments = parser.parse_args()
    applications = conversations(arguments.running, arguments.context, arguments.calls, arguments.answer)
    longest = arguments.context + arguments.calls * (ADDED_TOKENS + arguments.answer)
    options = EngineOptions(
        model="tiny",
        gpu_blocks=int(ROOM * arguments.running * longest / BLOCK_TOKENS),
        max_context_tokens=longest + BLOCK_TOKENS,
        max_running=arguments.running,
        host_gib=0.1,
    )
    with InProcess(options) as engine:
        engine.play(conversations(2, 64, 2, 4), RunSettings())
        watch = Watch()
        for place, method in ((Tokens, "prompt"), (Started, "add"), (Player, "advance"), (Player, "finished")):
            watch.at(place, method)
        watch.at(engine._engine.core, "step_fn")
        watch.at(engine._engine.llm, "step")
        gc.collect()
        gc.disable()
        began = time.thread_time_ns()
        stats = engine.play(applications, RunSettings(policy=arguments.policy))
        whole = time.thread_time_ns() - began
    show(watch, whole, stats.calls, stats.steps)


def show(watch: Watch, whole_ns: int, calls: int, steps: int) -> None:
    """In microseconds."""
    ours = watch.total("advance", "finished") - watch.total("prompt", "add")
    of_vllm = watch.total("step") - watch.total("step_fn")
    between = whole_ns - watch.total("step", "advance", "finished")
    print(f"{calls} calls, {steps} steps; µs, mean (median, 99th percentile)")
    for what, method in (("ids of a prompt", "prompt"), ("vLLM takes a call in", "add")):
        cuts = statistics.quantiles(watch.uses[method], n=100, method="inclusive")
        mean = statistics.mean(watch.uses[method])
        print(f"{what:36s} {mean / 1e3:9,.1f} ({cuts[49] / 1e3:,.1f}, {cuts[98] / 1e3:,.1f}) a call")
    print(f"{'what else the client does':36s} {ours / calls / 1e3:9,.1f} a call")
    print(f"{'vLLM, between two steps':36s} {of_vllm / steps / 1e3:9,.1f} a step")
    print(f"{'the client, between two steps':36s} {between / steps / 1e3:9,.1f} a step")
    client_ns = watch.total("prompt") + ours + between
    print(f"{'the client: all of it':36s} {client_ns / calls / 1e3:9,.1f} a call")
    print(f"{'the client and vLLM: all of it':36s} {(whole_ns - watch.total('step_fn')) / calls / 1e3:9,.1f} a call")


if __name__ == "__main__":
    sys.exit(exit_code(main))
