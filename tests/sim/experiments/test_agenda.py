"""Who plays what next."""

from __future__ import annotations

from tokencake.sim.experiments.processes.agenda import Agenda

DAYS = [(day, kind) for day in (1, 2, 3) for kind in "abc"]  # three groups of three kinds


def agenda(failed: frozenset[str] = frozenset()) -> Agenda[tuple[int, str]]:
    return Agenda(DAYS, lambda item: item[0], lambda item: item[1], lambda item: item[1] not in failed)


def test_a_group_stays_in_its_place_as_long_as_there_are_others() -> None:
    turns = agenda()
    drawn = [turns.draw(place) for place in ("left", "right", "left", "right")]
    assert drawn == [(1, "a"), (2, "a"), (1, "b"), (2, "b")]
    assert [turns.draw("left") for _ in range(4)] == [(1, "c"), (3, "a"), (3, "b"), (3, "c")]


def test_who_has_nothing_left_helps_where_most_is_left() -> None:
    turns = agenda()
    for item, seconds in ((DAYS[0], 1.0), (DAYS[1], 5.0), (DAYS[2], 2.0)):
        assert turns.draw("left") == item
        turns.took(item, seconds)
    assert [turns.draw("right"), turns.draw("left")] == [(2, "b"), (3, "b")]
    assert [turns.draw("third") for _ in range(2)] == [(3, "c"), (2, "c")]  # of the two days, 3 s are left each
    assert sorted(str(turns.draw("third")) for _ in range(3)) == ["(2, 'a')", "(3, 'a')", "None"]


def test_what_takes_longest_comes_first_once_that_is_known() -> None:
    turns = agenda()
    for seconds in (1.0, 3.0, 2.0):
        item = turns.draw("here")
        assert item is not None
        turns.took(item, seconds)
    assert [turns.draw("here") for _ in range(3)] == [(2, "b"), (2, "c"), (2, "a")]


def test_what_is_no_longer_wanted_is_passed_over() -> None:
    failed: set[str] = set()
    turns = Agenda(DAYS, lambda item: item[0], wanted=lambda item: item[1] not in failed)
    assert turns.draw("here") == (1, "a")
    failed |= {"b", "c"}
    assert [turns.draw("here") for _ in range(3)] == [(2, "a"), (3, "a"), None]
