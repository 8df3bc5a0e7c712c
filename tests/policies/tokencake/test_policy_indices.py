"""What is kept by facts is what a look at everything would find."""

from hypothesis import given
from hypothesis import strategies as st

from tokencake.policies.tokencake.published.branches import Branches
from tokencake.policies.tokencake.published.gather_queue import ROUNDING_S, GatherQueue
from tokencake.policies.tokencake.published.score import Drift

DRIFTS = (Drift(100.0, 5.0, 8.0, 1.0), Drift(90.0, 5.0, 12.0, 0.0), Drift(100.0, 5.0, 8.0, 0.5))
quarters = st.integers(0, 40).map(lambda n: n / 4)


@given(
    st.lists(st.tuples(st.sampled_from(DRIFTS), quarters, st.none() | quarters), min_size=1, max_size=12),
    st.data(),
)
def test_the_highest_of_some_branches_is_that_of_the_highest_of_them(
    calls: list[tuple[Drift, float, float | None]], data: st.DataObject
):
    """Each has a drift, waits since some time, or has waited for so long; some leave, one at least stays."""
    branches = Branches(started_s=1.0)
    for call in calls:
        branches.add(*call)
    stay = data.draw(st.integers(1, len(calls)))
    for call in calls[stay:]:
        branches.remove(*call)
    now_s = 10.0 + data.draw(quarters)
    expected = max(
        drift.points(now_s - 1.0, now_s - since_s if waited_s is None else waited_s)
        for drift, since_s, waited_s in calls[:stay]
    )
    assert branches.highest(now_s) == expected
    for call in calls[:stay]:
        assert branches
        branches.remove(*call)
    assert not branches


@given(st.lists(st.tuples(st.integers(0, 7), st.none() | quarters, st.booleans()), max_size=40))
def test_agents_gather_when_their_time_has_come(events: list[tuple[int, float | None, bool]]):
    """Agents 0 to 7 get a time, another one, or none; after some of these a second goes by."""
    queue = GatherQueue()
    from_s: dict[int, float] = {}
    now_s = 0.0
    came: set[int] = set()  # who has come stays, until it is given another time
    for number, at_s, passes in events:
        came.discard(number)
        if at_s is None:
            queue.remove(str(number))
            from_s.pop(number, None)
        else:
            queue.put(str(number), number, at_s)
            from_s[number] = at_s
        now_s += passes
        came |= {n for n, time_s in from_s.items() if time_s <= now_s + ROUNDING_S}
        assert [*queue.near(now_s)] == [(n, str(n)) for n in sorted(came)]
        assert [*queue.far()] == sorted((time_s, n, str(n)) for n, time_s in from_s.items() if n not in came)
        assert bool(queue) == bool(from_s)
