"""What SimPy takes of a run: its events alone, with nothing behind them, beside the run itself.

    python benchmarks/simpy_share.py                  # a line each for the shapes of benchmarks/speed.py, as installed
    TOKENCAKE_PURE=1 python benchmarks/simpy_share.py

A run is played once with SimPy's environment looked over: how many events each event schedules, when, and with which
priority. Then the same events happen again in an environment of SimPy's, and do nothing but schedule the next; that
loop without SimPy is taken off. CPU time, the best of a few turns.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import simpy
import speed_run
from counts import count
from exits import exit_code
from simpy.events import EventPriority

from tokencake.policies.registry import load_policy
from tokencake.sim.engine.simulate import simulate
from tokencake.sim.machine.files import load_machine
from tokencake.sim.machine.machine import Machine
from tokencake.traces.apps import Application
from tokencake.traces.results.metrics import Metrics

Scheduled = list[list[tuple[EventPriority, int]]]  # by event in the order in which they happen; at first those before

SHAPES = {"dag": 0, "long-dag": 0, "chat": 20_000}  # and of how many calls, where a shape may have any number
POLICIES = ("vllm", "tokencake")


class Share(NamedTuple):
    """Microseconds a call, and events a call."""

    run_us: float
    simpy_us: float
    events: float


class Event:
    """As little of an event as SimPy needs."""

    __slots__ = ("_ok", "callbacks")

    def __init__(self, callbacks: list[Callable[[Any], None]]) -> None:
        self.callbacks: list[Callable[[Any], None]] | None = callbacks
        self._ok = True


class Watched(simpy.Environment):
    """SimPy's environment, which remembers what was scheduled when."""

    def __init__(self, initial_time: int = 0) -> None:
        super().__init__(initial_time)
        self.scheduled: Scheduled = [[]]

    def schedule(self, event: Any, priority: EventPriority = EventPriority(1), delay: int = 0) -> None:  # type: ignore[override]  # noqa: B008
        self.scheduled[-1].append((priority, delay))
        super().schedule(event, priority, delay)

    def step(self) -> None:
        self.scheduled.append([])
        super().step()


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=count, default=7, help="turns, of which the best counts")
    times = parser.parse_args().times
    print(f"{'shape':<10}{'policy':<11}{'us a call':>10}{'SimPy':>8}{'share':>8}{'events a call':>15}")
    for shape, calls in SHAPES.items():
        for policy in POLICIES:
            run_us, simpy_us, events = share(shape, calls, policy, times)
            print(
                f"{shape:<10}{policy:<11}{run_us:>10.2f}{simpy_us:>8.2f}{simpy_us / run_us:>8.1%}{events:>15.2f}",
                flush=True,
            )


def share(shape: str, calls: int, policy: str, times: int) -> Share:
    """Of one shape under a policy."""
    applications = list(speed_run.applications(shape, calls, "")())
    play = partial(run, applications, policy, load_machine("a800-qwen2.5-14b", []))
    scheduled, played = watched(play)
    run_s = best(play, times)
    simpy_s = best(lambda: replay(scheduled), times) - best(lambda: nothing(scheduled), times)
    return Share(run_s / played * 1e6, simpy_s / played * 1e6, sum(map(len, scheduled)) / played)


def run(applications: list[Application], policy: str, machine: Machine) -> int:
    """Calls of a run, the metrics' fold included."""
    fold = Metrics()
    stats = simulate(applications, load_policy(policy), machine, [fold.add])
    fold.result()
    return stats.calls


def watched(play: Callable[[], int]) -> tuple[Scheduled, int]:
    """What a run schedules, and its calls."""
    made: list[Watched] = []

    def environment(initial_time: int) -> Watched:
        made.append(Watched(initial_time))
        return made[-1]

    original = simpy.Environment
    simpy.Environment = environment  # type: ignore[assignment,misc]
    try:
        calls = play()
    finally:
        simpy.Environment = original  # type: ignore[misc]
    return made[0].scheduled, calls


def replay(scheduled: Scheduled) -> None:
    """The same events, with nothing behind them."""
    environment, coming = simpy.Environment(0), iter(scheduled)

    def happen(_: object) -> None:
        for priority, delay in next(coming, ()):
            environment.schedule(Event(callbacks), priority, delay)  # type: ignore[arg-type]

    callbacks: list[Callable[[Any], None]] = [happen]
    happen(None)
    environment.run()


def nothing(scheduled: Scheduled) -> None:
    """What `replay` does beside SimPy."""
    coming: Iterator[list[tuple[EventPriority, int]]] = iter(scheduled)

    def happen(_: object) -> None:
        for _priority, _delay in next(coming, ()):
            Event(callbacks)

    callbacks: list[Callable[[Any], None]] = [happen]
    for _ in scheduled:
        happen(None)


def best(do: Callable[[], object], times: int) -> float:
    """Seconds of CPU of the quickest of so many turns."""
    taken = []
    for _ in range(times):
        gc.collect()
        began = time.process_time()
        do()
        taken.append(time.process_time() - began)
    return min(taken)


if __name__ == "__main__":
    sys.exit(exit_code(main))
