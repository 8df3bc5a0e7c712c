"""The score by which the spatial half orders calls: how urgent is this call for its application?

Hints say where a call stands in its application's DAG; the rest drifts with time. Whatever does not drift is summed up
once a call, so that a score costs three multiplications.
"""

from __future__ import annotations

from math import inf
from typing import Final, NamedTuple

from ....traces.apps import Hints

START_OFFSET_S = 60.0  # applications that start later gain nothing more by it
START_POINTS = 6.0  # a second of it
MOST_ELAPSED_S: Final = 300.0
MOST_WAITED_S: Final = 180.0
MOST_DEEP_S: Final = 240.0


class Line(NamedTuple):
    """A score while it grows at the same pace. Of two with the same slope the one with more points stays ahead."""

    points: float  # at time 0, if it had grown like this since
    slope: float  # points a second
    until_s: float


ALIKE: Final = Line(0.0, 0.0, inf)  # the score of everybody, where there are none


class Drift(NamedTuple):
    """A call's score as a function of time: `fixed` points, and points a second."""

    fixed: float
    a_second_elapsed: float  # since the application started, up to 300 s
    a_second_waited: float  # in the queue, up to 180 s
    a_second_deep: float  # since the application started, up to 240 s: deeper calls gain more

    def points(self, elapsed_s: float, waited_s: float) -> float:
        """The score after so many seconds. Higher goes first."""
        return (
            self.fixed
            + self.a_second_elapsed * (elapsed_s if elapsed_s < MOST_ELAPSED_S else MOST_ELAPSED_S)
            + self.a_second_waited * (waited_s if waited_s < MOST_WAITED_S else MOST_WAITED_S)
            + self.a_second_deep * (elapsed_s if elapsed_s < MOST_DEEP_S else MOST_DEEP_S)
        )

    def line(self, started_s: float, since_s: float | None, now_s: float) -> Line:
        """The score from now on, of a call whose application started then, and that waits since then.

        `since_s` None: it does not wait yet.
        """
        points, slope, until_s = self.fixed, 0.0, inf
        terms = [(self.a_second_elapsed, started_s, MOST_ELAPSED_S), (self.a_second_deep, started_s, MOST_DEEP_S)]
        if since_s is not None:
            terms.append((self.a_second_waited, since_s, MOST_WAITED_S))
        for a_second, from_s, most_s in terms:
            end_s = from_s + most_s
            if not a_second:
                continue
            if now_s < end_s:
                points -= a_second * from_s
                slope += a_second
                until_s = min(until_s, end_s)
            else:
                points += a_second * most_s
        return Line(points, slope, until_s)


def drift(hints: Hints, start_offset_s: float) -> Drift:
    """The published score of a call whose application started `start_offset_s` after the first one.

    The published formula also names a dependency depth; nothing in a trace tells it apart from the depth, which
    stands in for it as the formula provides.
    """
    largest_depth = max(1, hints.max_depth)
    remaining = min(1.0, hints.remaining_depth / largest_depth)
    depth = min(1.0, hints.depth / largest_depth)
    parallel = 1 / hints.similarity if 0 < hints.similarity < 1 else 1.0
    fixed = (
        100 * hints.importance
        + 15 * hints.depth
        + 45 * hints.out_degree
        + 10 * hints.in_degree
        + 20 * hints.similarity
        + 20 * hints.remaining_depth
        + 120 * (parallel - 1)
        + START_POINTS * min(start_offset_s, START_OFFSET_S)
        + 180 * hints.critical_path
        + 90 * hints.near_completion
        + 20 * (hints.join_group is not None)
        + 4 * hints.depth
        + 12 * max(hints.fanout_width - 1, 0)
        - 8 * max(hints.memory_weight - 1, 0.0)
    )
    return Drift(fixed, 5 * (1 + 0.75 * remaining), 8 * (1 + 0.5 * remaining), 5 * depth)
