"""When all workers have made a copy, and how long the slowest took."""

from __future__ import annotations

from tokencake.live.copier.jobs import Acknowledgements


def test_a_copy_has_ended_when_every_worker_said_so():
    told = Acknowledgements(workers=2)
    assert told.complete({1: 1, 2: 2}, {1: 0.5, 2: 0.25}) == {2: 0.25}
    assert told.complete({3: 1}, {}) == {}
    assert told.complete({1: 1, 3: 1}, {1: 0.125, 3: 1.0}) == {1: 0.5, 3: 1.0}


def test_workers_need_not_say_how_long_it_took():
    told = Acknowledgements(workers=1)
    assert told.complete({1: 1}, {}) == {1: None}
    assert told.complete({2: 1}, {2: 0.5}) == {2: 0.5}
