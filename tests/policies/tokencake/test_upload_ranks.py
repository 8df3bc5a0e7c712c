"""Agents with uploads come out by their scores, the lowest first, however these grew since they were put in."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tokencake.policies.tokencake.published.score import Drift
from tokencake.policies.tokencake.published.upload_ranks import UploadRanks

DRIFTS = (Drift(0.0, 5.0, 8.0, 0.0), Drift(100.0, 5.0, 8.0, 5.0), Drift(100.0, 8.0, 12.0, 2.0))
ROUNDING = 1e-6  # points

agents = st.sampled_from("abcdefgh")
changes = st.tuples(agents, st.none() | st.sampled_from(DRIFTS), st.integers(0, 300))


@given(st.lists(st.tuples(changes, st.integers(0, 90))))
def test_the_lowest_comes_first_at_any_time(rows):
    ranks, alive = UploadRanks(), dict[str, tuple[Drift, float]]()
    now_s = 0.0

    def points(agent: str) -> float:
        drift, started_s = alive[agent]
        return drift.points(now_s - started_s, 0.0)

    def put(agent: str) -> None:
        drift, started_s = alive[agent]
        ranks.put(agent, "abcdefgh".index(agent), drift.line(started_s, None, now_s))

    for (agent, drift, age_s), later_s in rows:
        now_s += later_s
        if drift is None:
            alive.pop(agent, None)
            ranks.remove(agent)
        else:
            alive[agent] = (drift, now_s - age_s)
            put(agent)
        for name in ranks.ended(now_s):
            put(name)
        found = list(ranks.lowest(points))
        assert {name: score for score, name in found} == {name: points(name) for name in alive}
        scores = [score for score, _ in found]
        assert all(one <= other + ROUNDING for one, other in pairwise(scores))


def test_of_equal_ones_the_agent_that_came_last_comes_first():
    ranks = UploadRanks()
    for number, agent in enumerate("abc"):
        ranks.put(agent, number, DRIFTS[0].line(0.0, None, 0.0))
    assert [agent for _, agent in ranks.lowest(lambda agent: 0.0)] == ["c", "b", "a"]
