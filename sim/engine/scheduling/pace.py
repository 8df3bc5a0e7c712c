"""Times of a stretch of iterations in closed form: each takes longer than the one before it by the same amount.

Unless there is a least time: where the host works beside the device, an iteration takes no less than the host's part.
Then the first ones, in which the device would be done earlier, take equally long.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isqrt

from ....traces.arithmetic import div_ceil


def paced(first_ps: int, growth_ps: int, host_ps: int, *, asynchronous: bool) -> Pace:
    """A stretch whose iteration i takes the device `first_ps + growth_ps * i`, and the host `host_ps`.

    One after the other, or (`asynchronous`) beside each other.
    """
    if not asynchronous:
        return Pace(first_ps + host_ps, growth_ps)
    if host_ps <= first_ps:
        return Pace(first_ps, growth_ps)
    if not growth_ps:
        return Pace(host_ps, 0)
    return BentPace(host_ps, div_ceil(host_ps - first_ps, growth_ps), first_ps, growth_ps)


class Pace:
    """Times of a stretch: iteration i (from 0 on) takes `first + growth * i` picoseconds."""

    __slots__ = ("first_ps", "growth_ps")

    def __init__(self, first: int, growth: int) -> None:
        self.first_ps = first
        self.growth_ps = growth

    def total_ps(self, iterations: int) -> int:
        """Picoseconds of the first `iterations` iterations."""
        return iterations * self.first_ps + self.growth_ps * (iterations * (iterations - 1) // 2)

    def iteration_ps(self, i: int) -> int:
        """Picoseconds of iteration `i`."""
        return self.first_ps + self.growth_ps * i

    def weighed_ps(self, weights: Iterable[tuple[int, int]], lag: int) -> int:
        """The sum of `weight * total_ps(iteration - lag)` over all (iteration, weight)."""
        first, growth = self.first_ps, self.growth_ps
        weighed = 0
        for iteration, weight in weights:
            n = iteration - lag
            weighed += weight * (n * first + growth * (n * (n - 1) // 2))
        return weighed

    def covering(self, span_ps: int) -> int:
        """The least number of iterations that together take at least `span_ps`."""
        if span_ps <= 0:
            return 0
        if not self.growth_ps:
            return div_ceil(span_ps, self.first_ps)
        # growth/2 n² + (first − growth/2) n = span, solved in whole numbers, then put right
        linear = 2 * self.first_ps - self.growth_ps
        n = (isqrt(linear * linear + 8 * self.growth_ps * span_ps) - linear) // (2 * self.growth_ps)
        while self.total_ps(n) < span_ps:
            n += 1
        while n and self.total_ps(n - 1) >= span_ps:
            n -= 1
        return n


class BentPace(Pace):
    """Times of a stretch whose first `level` iterations take `least` picoseconds each, the others more."""

    __slots__ = ("_level", "_rest")

    def __init__(self, least: int, level: int, device_first: int, growth: int) -> None:
        super().__init__(least, growth)
        self._level = level
        self._rest = Pace(device_first + growth * level, growth)

    def total_ps(self, iterations: int) -> int:
        if iterations <= self._level:
            return iterations * self.first_ps
        return self._level * self.first_ps + self._rest.total_ps(iterations - self._level)

    def iteration_ps(self, i: int) -> int:
        return self.first_ps if i < self._level else self._rest.iteration_ps(i - self._level)

    def weighed_ps(self, weights: Iterable[tuple[int, int]], lag: int) -> int:
        return sum(weight * self.total_ps(iteration - lag) for iteration, weight in weights)

    def covering(self, span_ps: int) -> int:
        level_ps = self._level * self.first_ps
        if span_ps > level_ps:
            return self._level + self._rest.covering(span_ps - level_ps)
        return max(0, div_ceil(span_ps, self.first_ps))
