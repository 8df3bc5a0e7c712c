"""When a watch speaks: with made-up times and copies; what it says of a real engine is in tests/vllm."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tokencake.live.engine.control.stall import Watch
from tokencake.policies.run_settings import LONGEST_COPY_S

SCHEDULER = SimpleNamespace(running=[1, 2, 3], requests={})


def engine(under_way: int = 0, ended: int = 0) -> SimpleNamespace:
    return SimpleNamespace(copies=SimpleNamespace(under_way=under_way, ended=ended))


def spoken(watch: Watch, now_s: float, adapter: Any = None) -> bool:
    """Whether it says something then that it has not said."""
    return watch.look(now_s, SCHEDULER, adapter) is not None


def test_it_speaks_once_when_nothing_has_happened_for_so_long() -> None:
    watch = Watch(10.0)
    watch.happened(100.0)
    assert [spoken(watch, at_s) for at_s in (100.0, 109.9, 110.0, 111.0, 500.0)] == [False, False, True, False, False]
    watch.happened(600.0)
    assert [spoken(watch, at_s) for at_s in (605.0, 610.0)] == [False, True]


def test_what_it_said_holds_until_something_happens() -> None:
    watch = Watch(10.0)
    assert (watch.said, watch.look(12.0, SCHEDULER, None)) == (
        None,
        "nothing was computed or copied for 12 s, though 3 calls run",
    )
    assert not spoken(watch, 20.0, engine())
    assert watch.said == "nothing was computed or copied for 12 s, though 3 calls run"
    assert not spoken(watch, 30.0, engine(ended=1))
    assert watch.said is None


def test_a_copy_that_ended_is_something_that_happened() -> None:
    watch = Watch(10.0)
    assert not spoken(watch, 9.0, engine(ended=1))
    assert not spoken(watch, 18.9, engine(ended=1))
    assert spoken(watch, 19.0, engine(ended=1))


def test_a_copy_under_way_may_take_as_long_as_any_does() -> None:
    watch = Watch(10.0)
    assert not spoken(watch, LONGEST_COPY_S - 0.1, engine(under_way=1))
    assert spoken(watch, LONGEST_COPY_S, engine(under_way=1))
    patient = Watch(2 * LONGEST_COPY_S)
    assert not spoken(patient, LONGEST_COPY_S, engine(under_way=1))
