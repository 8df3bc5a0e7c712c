"""Reserves: how they are split, who may draw on them, and that nothing is handed out twice."""

from hypothesis import given
from hypothesis import strategies as st

from tokencake.policies.tokencake.options import Options
from tokencake.policies.tokencake.published.agent_types import AgentType
from tokencake.policies.tokencake.published.partition import Partition, Room, split
from tokencake.traces.apps import Hints
from tokencake.traces.events import Request


def a_type(name: str, importance: float = 1.0) -> AgentType:
    kind = AgentType(name, step=0)
    kind.enter(Request(f"a/{name}", "a", name, name, 100, 10, (), Hints(importance=importance)), 0.0)
    return kind


def test_the_largest_remainders_get_what_rounding_leaves():
    assert split(10, ["a", "b", "c"], {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 0, "b": 0, "c": 0}) == {
        "a": 4,
        "b": 3,
        "c": 3,
    }


def test_a_type_that_uses_much_gets_more_than_its_score():
    # a: s = 1/4, m = 1: weight 5/8. b: s = 3/4, m = 0: weight 3/4.
    assert split(22, ["b", "a"], {"a": 1.0, "b": 3.0}, {"a": 50, "b": 0}) == {"b": 12, "a": 10}


@given(
    st.integers(0, 5000),
    st.dictionaries(st.text(min_size=1, max_size=3), st.tuples(st.floats(1, 100), st.integers(0, 5000)), min_size=1),
)
def test_a_split_hands_out_every_block(blocks, types):
    scores = {name: score for name, (score, _) in types.items()}
    used = {name: blocks for name, (_, blocks) in types.items()}
    parts = split(blocks, sorted(types), scores, used)
    assert sum(parts.values()) == blocks
    assert min(parts.values()) >= 0


def test_the_reserved_share_follows_the_usage_window_by_window():
    partition, types = Partition(Options()), [a_type("planner")]
    reserved = []
    for step, free_blocks in ((0, 0), (499, 0), (500, 0), (1500, 0), (9000, 0), (9500, 700), (20000, 700)):
        partition.update(step, 0.0, free_blocks, 1000, types)
        reserved.append(partition.reserve_blocks["planner"])
    # starts at the least; full: +5 % a window, up to 30 %; two windows in one go; usage of 30 %: back to 5 %
    assert reserved == [50, 50, 100, 200, 300, 250, 50]


def test_only_the_best_three_quarters_of_the_types_are_critical():
    partition = Partition(Options())
    types = [a_type("a", 1.0), a_type("b", 5.0), a_type("c", 9.0), a_type("d", 7.0)]
    partition.update(0, 0.0, 500, 1000, types)
    assert list(partition.reserve_blocks) == ["c", "d", "b"]


def test_reserves_beyond_what_is_uncommitted_are_cut_from_the_lowest_type_up():
    partition = Partition(Options(reserve_min_share=0.3))
    partition.update(0, 0.0, 1000, 1000, [a_type("low", 1.0), a_type("high", 9.0), a_type("none", 0.0)])
    whole = partition.reserve_blocks
    assert list(whole) == ["high", "low"]
    room = partition.room(whole["high"] + 5)
    assert (room.shared_blocks, room.idle_blocks) == (0, {"high": whole["high"], "low": 5})


def test_the_shared_part_is_whatever_is_uncommitted_beyond_idle_reserves():
    partition = Partition(Options(reserve_min_share=0.1))
    partition.update(0, 0.0, 1000, 1000, [a_type("a")])  # 100 blocks are reserved
    # Two branches started in one plan: each was charged 300 blocks, and 250 of these are the same.
    branch = ((None, 290), ("a", 10))
    partition.charge(branch)
    partition.charge(branch)
    room = partition.room(1000 - 350)
    assert (room.shared_blocks, room.idle_blocks) == (570, {"a": 80}), "not 900 - 580"
    # One of them ended: it held 50 blocks by itself.
    partition.charge(branch, -1)
    room = partition.room(1000 - 300)
    assert (room.shared_blocks, room.idle_blocks) == (610, {"a": 90})


@given(
    st.integers(-500, 1000),
    st.lists(st.tuples(st.sampled_from([None, "a", "b"]), st.integers(0, 300)), max_size=5),
)
def test_the_parts_add_up_to_what_is_uncommitted(uncommitted, charges):
    partition = Partition(Options(reserve_min_share=0.3))
    partition.update(0, 0.0, 1000, 1000, [a_type("a", 9.0), a_type("b"), a_type("none", 0.0)])
    partition.charge(tuple(charges))
    room = partition.room(uncommitted)
    assert min(room.shared_blocks, *room.idle_blocks.values()) >= 0
    assert room.shared_blocks + sum(room.idle_blocks.values()) == max(0, uncommitted)


def test_a_draw_takes_the_shared_part_first_and_takes_nothing_if_it_is_not_enough():
    room = Room(100, 10, {"a": 20, "b": 30})
    assert room.draw(35, ["a"]) is None
    assert room.shared_blocks == 10
    assert room.draw(25, ["a", "b"]) == ((None, 10), ("a", 15))
    assert room.uncommitted_blocks == 75


def test_lending_takes_what_is_idle_then_the_shared_part_and_owes_nothing():
    room = Room(100, 10, {"high": 20, "low": 30})
    assert room.lend(61) is None, "though so much is uncommitted"
    assert room.lend(55) == (("low", 30), ("high", 20), (None, 5))
    assert (room.shared_blocks, room.uncommitted_blocks) == (5, 45)
    assert room.lend(6) is None


def test_no_more_is_lent_than_is_uncommitted():
    room = Room(20, 10, {"a": 20})
    assert room.lend(21) is None
    assert room.lend(20) == (("a", 20),)


@given(
    st.integers(0, 100),
    st.integers(0, 100),
    st.integers(0, 100),
    st.lists(st.tuples(st.booleans(), st.integers(1, 60))),
)
def test_no_more_is_handed_out_than_is_uncommitted(uncommitted, shared, idle, wishes):
    room = Room(uncommitted, shared, {"a": idle})
    taken = 0
    for lend, blocks in wishes:
        charge = room.lend(blocks) if lend else room.draw(blocks, ["a"])
        if charge is not None:
            assert sum(part for _, part in charge) == blocks
            taken += blocks
    assert taken <= uncommitted
    assert room.uncommitted_blocks == uncommitted - taken


def test_deferrals_raise_a_type_that_waits_and_running_calls_pay_them_back():
    kind = a_type("planner")
    kind.wait(0.0, step=0)
    fresh, deferred = kind.score(0.0, 0), kind.score(0.0, 100)
    assert deferred > fresh
    kind.stop_waiting(0.0, 100)
    kind.run(100)
    running = kind.score(0.0, 100)
    assert kind.score(0.0, 200) < running
    assert kind.score(0.0, 200) == kind.score(0.0, 10_000)
