"""A sweep: policies at every point of a grid, repeated; what is kept of it is not played again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ....traces.errors import TokencakeError
from ....traces.generate.arrivals import ArrivalProcess
from ....traces.results.run_counts import check_count, check_repeats
from ....traces.variants.vary import AS_IT_IS, Variation
from ..executors import run_on_workers
from ..identity import identity_of, key_of
from ..preflight import preflight
from ..processes.workers import cores
from ..run import Outcome, RunSpec, read_once, run_specs
from .grid import Grid, Point
from .result_log import Result, ResultLog

Play = Callable[[Sequence[RunSpec]], Generator[Outcome, None, None]]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is played."""

    trace: Path
    grid: Grid
    policies: tuple[str, ...]  # the first is the one that the others are held against
    repeats: int = 1
    variation: Variation = AS_IT_IS
    seed: int = 0
    arrivals: ArrivalProcess = "even"
    skip_oversized: bool = False
    policy_timeout_s: float | None = None  # for a policy to be made, and for a plan

    def check(self) -> None:
        """Finds what would be wrong with every cell. Raises TokencakeError, in one line."""
        check_repeats(self.repeats)
        check_count(self.count(), "the grid")
        if len(set(self.policies)) < len(self.policies):
            raise TokencakeError(f"--policy: expected different policies, got {', '.join(self.policies)}")
        read_once(self.trace)  # what is wrong with it is found now
        self.bounds()

    def bounds(self) -> Mapping[str, bool]:
        """Of each policy, whether it sees the future. Raises PolicyError for one that cannot be made."""
        return preflight(self.policies, self.seed, self.policy_timeout_s)

    def cells_at(self, point: Point) -> Iterator[RunSpec]:
        """All policies in each repeat, one repeat after the other."""
        return run_specs(self._first_cell(point), self.policies, self.repeats)

    def count(self) -> int:
        return len(self.grid.points) * len(self.policies) * self.repeats

    def key(self, cell: RunSpec) -> str:
        """Names a cell in the log of results."""
        return key_of(cell, self.grid.base)

    def identity(self) -> Mapping[str, object]:
        """What all cells have in common."""
        return identity_of(self._first_cell(self.grid.points[0]), self.grid.base)

    def _first_cell(self, point: Point) -> RunSpec:
        return RunSpec(
            self.trace,
            point.machine,
            self.policies[0],
            self.variation,
            seed=self.seed,
            rate=point.rate,
            arrivals=self.arrivals,
            skip_oversized=self.skip_oversized,
        )


class Progress:
    """Who is told of what has come in; by default, nobody cares."""

    def begin(self, todo: Sequence[RunSpec]) -> None:
        """These cells are going to be played."""

    def cell(self, point: Point, outcome: Outcome, done: int) -> None:
        """One more cell has come to its end, or failed."""

    def point(self, point: Point) -> None:
        """Nothing of this point is missing any more."""


def play_sweep(sweep: Sweep, log: ResultLog, play: Play, progress: Progress) -> None:
    """Plays what is missing in `log`, failed cells included, and logs it at once.

    What is already there is reported first, point by point. An interrupt or an error ends it at any time; what had
    come in by then is kept.
    """
    missing: dict[str, Point] = {}  # points by the keys of their cells
    left: dict[Point, int] = {}
    todo: list[RunSpec] = []
    for point in sweep.grid.points:
        for cell in sweep.cells_at(point):
            if not _has(log.results, key := sweep.key(cell)):
                missing[key] = point
                left[point] = left.get(point, 0) + 1
                todo.append(cell)
        if point not in left:
            progress.point(point)
    if not todo:
        return
    progress.begin(todo)
    with closing(play(todo)) as outcomes:
        for done, outcome in enumerate(outcomes, sweep.count() - len(todo) + 1):
            key = sweep.key(outcome.spec)
            point = missing[key]
            log.add(key, outcome)
            progress.cell(point, outcome, done)
            left[point] -= 1
            if not left[point]:
                progress.point(point)


def players(on_cluster: bool, address: str | None, count: int | None, policy_timeout_s: float | None = None) -> Play:
    """Who plays: a Ray cluster, see `on_ray`, or processes of this machine. `count` cells at a time; None: all it can.

    Raises TokencakeError if there is no Ray, or an address without a cluster.
    """
    if not on_cluster:
        if address is not None:
            raise TokencakeError("--ray-address: expected --ray, too")
        return partial(on_cores, count or cores(), policy_timeout_s)
    if policy_timeout_s is not None:
        raise TokencakeError("--policy-timeout: not with --ray, whose workers nobody here can end")
    from ..ray_executor import check_ray, on_ray

    check_ray()
    return partial(on_ray, address, count)


def on_cores(count: int, policy_timeout_s: float | None, todo: Sequence[RunSpec]) -> Generator[Outcome, None, None]:
    """On processes of this machine, at most `count` of them, in the order in which they finish."""
    return run_on_workers(todo, min(count, len(todo)), policy_timeout_s)


def _has(results: Mapping[str, Result], key: str) -> bool:
    return (result := results.get(key)) is not None and result.metrics is not None
