"""Tool times: declared, learned, both, neither."""

from tokencake.policies.parts.tool_times import ToolTimeEstimates
from tokencake.traces.apps import NO_HINTS
from tokencake.traces.events import Request, ToolHint


def call(*tools: ToolHint, agent_type: str = "worker") -> Request:
    return Request("a/call", "a", "a/main", agent_type, 100, 10, tools, NO_HINTS)


def test_the_declared_time_counts_until_something_is_learned_then_the_mean():
    gaps, search = ToolTimeEstimates(), call(ToolHint("search", 4.0))
    assert gaps.estimate_s(search) == 4.0
    gaps.learn(search, 8.0)
    assert gaps.estimate_s(search) == (4.0 + 8.0) / 2


def test_learned_times_are_exponentially_weighted():
    gaps, fetch = ToolTimeEstimates(weight=0.5), call(ToolHint("fetch", None))
    gaps.learn(fetch, 8.0)
    gaps.learn(fetch, 4.0)
    assert gaps.estimate_s(fetch) == 6.0
    gaps.learn(fetch, 2.0)
    assert gaps.estimate_s(fetch) == 4.0


def test_nothing_known_is_a_second():
    assert ToolTimeEstimates().estimate_s(call(ToolHint("fetch", None))) == 1.0


def test_agent_types_and_tools_learn_apart():
    gaps = ToolTimeEstimates()
    gaps.learn(call(ToolHint("fetch", None)), 9.0)
    assert gaps.estimate_s(call(ToolHint("fetch", None), agent_type="reader")) == 1.0
    assert gaps.estimate_s(call(ToolHint("search", None))) == 1.0


def test_tools_side_by_side_last_as_long_as_the_longest_whatever_their_order():
    gaps = ToolTimeEstimates()
    both, turned = call(ToolHint("a", 2.0), ToolHint("b", 5.0)), call(ToolHint("b", 5.0), ToolHint("a", 2.0))
    assert gaps.estimate_s(both) == 5.0
    gaps.learn(both, 7.0)
    assert gaps.estimate_s(turned) == 6.0
