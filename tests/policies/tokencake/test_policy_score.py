"""The score of a call, against the published formula written out term by term."""

from hypothesis import given
from hypothesis import strategies as st

from tokencake.policies.tokencake.published.score import drift
from tokencake.traces.apps import Hints


def published(h: Hints, offset_s: float, elapsed_s: float, waited_s: float) -> float:
    r = min(1, h.remaining_depth / h.max_depth)
    p = min(1, h.depth / h.max_depth)
    par = 1 / h.similarity if 0 < h.similarity < 1 else 1
    return (
        100 * h.importance
        + 15 * h.depth
        + 45 * h.out_degree
        + 10 * h.in_degree
        + 20 * h.similarity
        + 20 * h.remaining_depth
        + 120 * (par - 1)
        + 6 * min(offset_s, 60)
        + 5 * min(elapsed_s, 300) * (1 + 0.75 * r)
        + 8 * min(waited_s, 180) * (1 + 0.5 * r)
        + 5 * min(elapsed_s, 240) * p
        + (180 if h.critical_path else 0)
        + (90 if h.near_completion else 0)
        + (20 if h.join_group else 0)
        + 4 * h.depth
        + 12 * max(h.fanout_width - 1, 0)
        - 8 * max(h.memory_weight - 1, 0)
    )


def test_a_plain_call_by_hand():
    # 100 importance + (15 + 20 + 4) for depth 1 of 1 + 20 similarity; nothing has drifted yet
    assert drift(Hints(), 0.0).points(0.0, 0.0) == 159


def test_waiting_counts_up_to_three_minutes():
    call = drift(Hints(remaining_depth=1, max_depth=2), 0.0)
    assert call.points(0.0, 10.0) - call.points(0.0, 0.0) == 8 * 10 * 1.25
    assert call.points(0.0, 181.0) == call.points(0.0, 180.0)


@given(
    st.builds(
        Hints,
        importance=st.floats(0, 20),
        critical_path=st.booleans(),
        near_completion=st.booleans(),
        join_group=st.sampled_from([None, "merge"]),
        depth=st.integers(1, 30),
        remaining_depth=st.integers(1, 30),
        in_degree=st.integers(0, 5),
        out_degree=st.integers(0, 5),
        similarity=st.sampled_from([1.0, 0.5, 0.25]),
        fanout_width=st.integers(1, 8),
        memory_weight=st.floats(0, 4),
        max_depth=st.integers(1, 30),
    ),
    st.floats(0, 400),
    st.floats(0, 400),
    st.floats(0, 400),
)
def test_drift_is_the_published_formula(hints, offset_s, elapsed_s, waited_s):
    points = drift(hints, offset_s).points(elapsed_s, waited_s)
    assert abs(points - published(hints, offset_s, elapsed_s, waited_s)) < 1e-6
