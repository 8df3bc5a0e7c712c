"""What ran side by side in a recording stays so: each rule on a few requests, and any session played back."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencake.traces.convert.recorded_session import RecordedRequest, Thread, plan, settle
from tokencake.traces.files.fields import WrongField

S = 1_000_000  # µs


@dataclass
class Session:
    """A session under construction, in whole seconds."""

    main: Thread = field(default_factory=lambda: Thread(-1, "main", "main"))
    requests: dict[str, RecordedRequest] = field(default_factory=dict)

    def request(
        self, name: str, start_s: float, end_s: float, ids: list[int], inside: Thread | None = None
    ) -> RecordedRequest:
        start_us, end_us = round(start_s * S), round(end_s * S)
        tokens = max(1, 10 * len(ids))
        made = RecordedRequest(len(self.requests), start_us, end_us, end_us - start_us, tokens, 5, ids)
        self.requests[name] = made
        (inside or self.main).requests.append(made)
        return made

    def agent(self, name: str, start_s: float, end_s: float, inside: Thread | None = None) -> Thread:
        made = Thread(1_000 + len(name), name, name, round(start_s * S), round(end_s * S))
        (inside or self.main).threads.append(made)
        return made

    def planned(self) -> dict[str, RecordedRequest]:
        plan(self.main)
        return self.requests


def waits(session: Session) -> dict[str, str]:
    """For each request, those that it waits for, as words."""
    names = {request.position: name for name, request in session.requests.items()}
    planned = session.planned()
    return {name: " ".join(names[one.position] for one in request.after) for name, request in planned.items()}


def test_what_overlaps_waits_for_the_same_and_what_follows_waits_for_all() -> None:
    """A plans; B, C and D work side by side; E has their results."""
    session = Session()
    session.request("A", 0, 2, [0, 1])
    for name, start, end, own in (("B", 5, 35, 50), ("C", 5.5, 35.5, 60), ("D", 6, 36, 70)):
        session.request(name, start, end, [0, 1, own])
    session.request("E", 40, 42, [0, 1, 2, 3])
    assert waits(session) == {"A": "", "B": "A", "C": "A", "D": "A", "E": "B C D"}
    planned = session.requests
    assert [planned[name].call for name in "ABCDE"] == [
        "main_1",
        "main_2",
        "main.side1_1",
        "main.side2_1",
        "main_3",
    ]
    assert {planned[name].base for name in "BCD"} == {planned["A"]}, "all three go on with what A had"
    assert planned["E"].base is planned["B"]
    assert [planned[name].pause_us / S for name in "ABCDE"] == [0, 3, 3.5, 4, 4]


def test_what_others_waited_for_is_not_waited_for_again() -> None:
    """A, then B beside C, then D once B has ended, E once all have."""
    session = Session()
    for name, start, end in (("A", 0, 1), ("B", 2, 4), ("C", 3, 9), ("D", 5, 7), ("E", 10, 11)):
        session.request(name, start, end, [0])
    assert waits(session) == {"A": "", "B": "A", "C": "A", "D": "B", "E": "C D"}


def test_requests_of_equal_times_keep_their_order() -> None:
    """Without recorded ends, nothing says that they overlapped."""
    session = Session()
    for name in "ABC":
        session.request(name, 4, 4, [0])
    assert waits(session) == {"A": "", "B": "A", "C": "B"}


def test_a_side_agent_goes_on_with_its_own_context() -> None:
    """B and C overlap, then each goes on: the one that is first again is told by its prompt."""
    session = Session()
    session.request("A", 0, 1, [0])
    session.request("B", 2, 9, [0, 10])
    session.request("C", 3, 5, [0, 20])
    session.request("C2", 6, 7, [0, 20, 21])
    session.request("B2", 10, 11, [0, 10, 11])
    session.request("C3", 12, 13, [0, 20, 21, 22])
    planned = session.planned()
    assert [planned[name].agent for name in ("A", "B", "C", "C2", "B2", "C3")] == [
        "main",
        "main",
        "main.side1",
        "main.side1",
        "main",
        "main.side1",
    ]
    assert planned["C3"].base is planned["C2"]


def test_a_side_agents_name_is_nobody_elses() -> None:
    session = Session()
    for name in "AB":
        session.request(name, 0, 1, [])
    plan(session.main, {"main.side1"})
    assert [one.agent for one in session.requests.values()] == ["main", "main.side2"]


def test_the_first_request_after_a_sub_agents_end_waits_for_it() -> None:
    """It runs from 2 to 30 s; the parent's next request begins in between, and the one after it when it has ended."""
    session = Session()
    session.request("A", 0, 2, [0])
    child = session.agent("child", 2, 30)
    session.request("K", 2, 29, [9], child)
    session.request("B", 5, 8, [0, 1])
    session.request("C", 30, 32, [0, 1, 2])
    session.request("D", 33, 34, [0, 1, 2, 3])
    assert waits(session) == {"A": "", "K": "A", "B": "A", "C": "B K", "D": "C"}


def test_nobody_waits_for_a_sub_agent_that_ends_last() -> None:
    session = Session()
    session.request("A", 0, 2, [0])
    child = session.agent("child", 2, 30)
    session.request("K", 2, 29, [9], child)
    session.request("B", 29.5, 31, [0, 1])
    assert waits(session) == {"A": "", "K": "A", "B": "A"}


def test_requests_side_by_side_all_wait_for_a_sub_agent_that_ended_before_them() -> None:
    session = Session()
    session.request("A", 0, 2, [0])
    session.request("K", 2, 9, [9], session.agent("child", 2, 10))
    session.request("B", 12, 20, [0, 1])
    session.request("C", 13, 20, [0, 2])
    assert waits(session) == {"A": "", "K": "A", "B": "A K", "C": "A K"}


def test_nested_sub_agents_are_waited_for_inside() -> None:
    """The inner one of two ends within the outer one's next request, so that the last but one waits for nobody."""
    session = Session()
    session.request("A", 0, 1, [0])
    outer = session.agent("outer", 1, 20)
    session.request("K", 1, 2, [8], outer)
    early, late = session.agent("early", 2, 5, outer), session.agent("latest", 2, 19, outer)
    session.request("X", 2, 5, [7], early)
    session.request("Y", 2, 19, [6], late)
    session.request("K2", 6, 18, [8, 9], outer)
    session.request("B", 21, 22, [0, 1])
    assert waits(session) == {"A": "", "K": "A", "X": "K", "Y": "K", "K2": "K X", "B": "A K2"}


def test_a_sub_agent_that_sends_nothing_itself_ends_with_those_that_it_started() -> None:
    session = Session()
    session.request("A", 0, 1, [0])
    outer = session.agent("outer", 1, 5)
    session.request("X", 2, 4, [7], session.agent("in", 1, 5, outer))
    session.request("B", 6, 7, [0, 1])
    assert waits(session) == {"A": "", "X": "A", "B": "A X"}


def test_a_sub_agent_that_sends_nothing_itself_lasts_as_long_as_those_that_it_started() -> None:
    session = Session()
    session.request("A", 0, 1, [0])
    outer = session.agent("outer", 1, 5)
    session.request("X", 2, 9, [7], session.agent("in", 1, 9, outer))
    session.request("B", 6, 7, [0, 1])
    settle(session.main)
    assert waits(session) == {"A": "", "X": "A", "B": "A"}


def test_a_sub_agent_that_begins_beside_the_first_request_waits_for_nothing_but_time() -> None:
    session = Session()
    session.request("A", 10, 20, [0])
    session.request("K", 13, 14, [9], session.agent("child", 12, 15))
    planned = session.planned()
    assert planned["K"].after == []
    assert planned["K"].pause_us == 3 * S


# tools


def test_a_tool_is_the_callers_alone() -> None:
    """Two requests bring results of A's tools; the first says how long these took."""
    session = Session()
    a = session.request("A", 0, 2, [0])
    for name, start in (("B", 5), ("C", 6)):
        session.request(name, start, 9, [0, 1]).brings_tool_result = True
    planned = session.planned()
    assert a.tool_us == 3 * S
    assert (planned["B"].pause_us, planned["C"].pause_us) == (0, 1 * S)


def test_what_starts_before_a_tool_would_have_returned_leaves_a_pause_instead() -> None:
    """A's sub-agent started at once: a tool of A of 7 s would have held it up."""
    session = Session()
    a = session.request("A", 0, 2, [0])
    k = session.request("K", 2, 30, [9], session.agent("child", 2, 30))
    b = session.request("B", 9, 10, [0, 1])
    b.brings_tool_result = True
    session.planned()
    assert a.tool_us is None
    assert (k.pause_us, b.pause_us) == (0, 7 * S)


# rounding


def whole_seconds(session: Session) -> Session:
    session.main.resolution_us = S
    return session


@pytest.mark.parametrize(("end_s", "ids", "waited_for"), [(8.2, [0, 1, 2], "A"), (9.0, [0, 1, 2], ""), (8.2, [0], "")])
def test_less_than_a_second_of_overlap_is_rounding_where_the_prompt_goes_on(
    end_s: float, ids: list[int], waited_for: str
) -> None:
    session = whole_seconds(Session())
    session.request("A", 0, end_s, [0, 1])
    session.request("B", 8, 12, ids)
    settle(session.main)
    assert waits(session)["B"] == waited_for


def test_what_rounding_moved_does_not_add_up() -> None:
    """Ten requests, each of which seems to begin 0.2 s too early: the last one is 0.2 s late and not 1.8 s."""
    session = whole_seconds(Session())
    for number in range(10):
        session.request(str(number), 10 * number, 10 * number + (10.2 if number % 2 else 9), list(range(number + 1)))
    settle(session.main)
    ordered = plan(session.main)
    assert max(later for later in late(ordered).values()) == 200_000


def test_a_sub_agent_that_begins_a_moment_before_its_starter_ended_was_started_by_it() -> None:
    session = whole_seconds(Session())
    session.request("A", 0, 2.7, [0])
    session.request("K", 2.4, 8, [9], session.agent("child", 2.4, 9))
    settle(session.main)
    assert waits(session)["K"] == "A"


def test_a_sub_agent_lasts_as_long_as_its_requests() -> None:
    session = Session()
    session.request("A", 0, 1, [0])
    session.request("K", 1, 20, [9], session.agent("child", 1, 8))
    session.request("B", 9, 10, [0, 1])
    settle(session.main)
    assert waits(session)["B"] == "A"


# limits, any session


def test_more_waits_than_a_trace_holds_are_refused() -> None:
    """Two layers of 1,100 requests side by side: 1,210,000 waits."""
    session = Session()
    for layer in range(2):
        for number in range(1_100):
            session.request(f"{layer} {number}", 10 * layer, 10 * layer + 1, [])
    with pytest.raises(WrongField, match="wait for 1000000 others in all"):
        plan(session.main)


def late(ordered: list[RecordedRequest]) -> dict[int, int]:
    """How much later than recorded each request begins, in µs, if it takes what it took; the first is on time."""
    origin_us = min(request.start_us for request in ordered)
    returned: dict[int, int] = {}
    found = {}
    for request in ordered:
        ready_us = max((returned[before.position] for before in request.after), default=origin_us)
        begin_us = ready_us + request.pause_us
        returned[request.position] = begin_us + request.service_us + (request.tool_us or 0)
        found[request.position] = begin_us - request.start_us
    return found


times = st.integers(0, 12)


@st.composite
def threads(draw: st.DrawFn, depth: int = 0, start: int = 0, counter: list[int] | None = None) -> Thread:
    """A thread with any requests, and sub-agents that end no earlier than what is in them."""
    counter = counter if counter is not None else [0]

    def position() -> int:
        counter[0] += 1
        return counter[0]

    thread = Thread(position(), f"agent{counter[0]}", "agent", start * S, start * S)
    for _ in range(draw(st.integers(0 if depth else 1, 5))):
        begin = start + draw(times)
        took = draw(st.integers(0, 6))
        ids = draw(st.lists(st.integers(0, 1), max_size=4))
        thread.requests.append(
            RecordedRequest(
                position(), begin * S, (begin + took) * S, took * S, 1 + 10 * len(ids), 5, ids, draw(st.booleans())
            )
        )
    if depth < 2:
        for _ in range(draw(st.integers(0, 2))):
            thread.threads.append(draw(threads(depth + 1, start + draw(times), counter)))
    thread.end_us = max([thread.start_us, *(one.end_us for one in thread.all_requests())])
    return thread


@given(main=threads())
@settings(max_examples=300)
def test_any_session_played_back_is_the_recording(main: Thread) -> None:
    """Each request begins when it did, nothing that overlapped is put in sequence, and agents' calls never overlap."""
    settle(main)
    requests = list(main.all_requests())
    ordered = plan(main)
    assert sorted(map(id, ordered)) == sorted(map(id, requests)), "each once"
    assert set(late(ordered).values()) == {0}
    behind: dict[int, set[int]] = {}
    by_agent: dict[str, RecordedRequest] = {}
    for request in ordered:
        assert all(before.end_us <= request.start_us for before in request.after)
        behind[request.position] = {one.position for one in request.after}.union(
            *(behind[one.position] for one in request.after)
        )
        assert request.base is None or request.base.position in behind[request.position]
        previous = by_agent.get(request.agent)
        assert previous is None or previous.position in behind[request.position], "an agent has one context"
        by_agent[request.agent] = request
    assert all(pauses >= 0 for pauses in (one.pause_us for one in ordered))
    assert max(Counter(one.call for one in ordered).values()) == 1


@given(main=threads(depth=2).filter(lambda thread: bool(thread.requests)))
def test_a_request_waits_for_all_of_its_thread_that_ended_before(main: Thread) -> None:
    settle(main)
    behind: dict[int, set[int]] = {}
    for request in plan(main):
        behind[request.position] = {one.position for one in request.after}.union(
            *(behind[one.position] for one in request.after)
        )
    for one in main.requests:
        for other in main.requests:
            if one.end_us <= other.start_us and one.start_us < other.start_us:
                assert one.position in behind[other.position]
