"""The same trace on another day: what varies, what never does, and what nobody may learn from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from renamed import Names, backwards
from trace_files import dags

from tokencake.traces.apps import Application, Call, Prompt, Segment, Tool
from tokencake.traces.errors import TraceError
from tokencake.traces.format.derive import with_hints
from tokencake.traces.format.reader import read_trace
from tokencake.traces.format.writer import write_trace
from tokencake.traces.variants.vary import AS_IT_IS, ASPECTS, EVERYTHING, Variation, parse_variation, vary

VARIATIONS = st.builds(
    Variation,
    arrivals=st.booleans(),
    tools=st.sampled_from([None, "fitted", 0.0, 0.3]),
    declared=st.sampled_from([None, "fitted", 0.0, 0.3]),
    order=st.booleans(),
)


def app(name: str, arrival_s: float, *tools: Tool, agent_type: str = "coder") -> Application:
    """An application of one call for each tool, one after another."""
    calls: list[Call] = []
    for at, tool in enumerate(tools):
        prompt = Prompt((Segment(f"{name}/task", 0, 10),), tokens=10)
        after = (calls[-1].id,) if calls else ()
        calls.append(Call(f"{name}/c{at}", name, f"{name}/main", agent_type, prompt, 5, 5, after=after, tools=(tool,)))
    return with_hints(Application(name, arrival_s, tuple(calls)))


def tool(duration_s: float, declared_s: float | None = None, kind: str = "test") -> Tool:
    return Tool(kind, duration_s, declared_s)


def durations(applications: Sequence[Application]) -> dict[str, float]:
    return {call.id: tool.duration_s for one in applications for call in one.calls for tool in call.tools}


def declared(applications: Sequence[Application]) -> dict[str, float | None]:
    return {call.id: tool.declared_s for one in applications for call in one.calls for tool in call.tools}


def arrivals(applications: Sequence[Application]) -> list[float]:
    return [one.arrival_s for one in applications]


def gaps(applications: Sequence[Application]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(arrivals(applications))]


def many(count: int) -> list[Application]:
    """Applications with gaps of 1, 2 or 4 s and tests of 1 to 5 s that declare nothing."""
    made, at_s = [], 0.5
    for index in range(count):
        made.append(app(f"a{index}", at_s, tool(1.0 + index % 5)))
        at_s += (1.0, 2.0, 4.0)[index * 7 % 3]
    return made


# -- arrivals and order


def test_gaps_are_drawn_from_those_of_the_trace_and_the_first_arrival_stays() -> None:
    applications = many(40)
    varied = vary(applications, Variation(arrivals=True), seed=0, repeat=0)
    assert varied[0].arrival_s == 0.5
    assert set(gaps(varied)) == {1.0, 2.0, 4.0}
    assert gaps(varied) != gaps(applications)


def test_a_schedule_of_even_gaps_becomes_a_poisson_process_of_the_same_rate() -> None:
    applications = [app(f"a{index}", 2.0 * index, tool(1.0)) for index in range(2000)]
    drawn = gaps(vary(applications, Variation(arrivals=True), seed=0, repeat=0))
    assert fmean(drawn) == pytest.approx(2.0, rel=0.05)
    assert pstdev(drawn) == pytest.approx(2.0, rel=0.1)  # of an exponential distribution it equals the mean


def test_what_all_arrives_at_once_goes_on_arriving_at_once() -> None:
    applications = [app(f"a{index}", 3.0, tool(1.0)) for index in range(4)]
    assert arrivals(vary(applications, Variation(arrivals=True), 0, 0)) == [3.0, 3.0, 3.0, 3.0]


def test_what_arrives_at_the_same_instant_does_so_in_any_order() -> None:
    applications = [app(f"a{index}", 3.0, tool(1.0)) for index in range(3)]
    days = [vary(applications, Variation(arrivals=True), 0, repeat) for repeat in range(600)]
    seen = Counter("".join(one.id[1] for one in day) for day in days)
    assert len(seen) == 6
    assert min(seen.values()) > 70  # 100 expected
    assert [one.id for one in vary(applications, Variation(tools=0.3), 0, 0)] == ["a0", "a1", "a2"]


def test_what_arrives_later_stays_behind() -> None:
    applications = [app(f"a{index}", 3.0 * (index // 2), tool(1.0)) for index in range(6)]  # two by two
    for repeat in range(20):
        day = vary(applications, Variation(arrivals=True), 0, repeat)
        for at_s in set(arrivals(day)):
            here = [index for index, one in enumerate(day) if one.arrival_s == at_s]
            assert {day[index].id for index in here} == {applications[index].id for index in here}


def test_order_sends_the_same_applications_at_the_same_times_in_another_order() -> None:
    applications = many(20)
    varied = vary(applications, Variation(order=True), seed=0, repeat=0)
    assert arrivals(varied) == arrivals(applications)
    assert [one.id for one in varied] != [one.id for one in applications]
    assert sorted(one.id for one in varied) == sorted(one.id for one in applications)
    assert durations(varied) == durations(applications)


def test_every_order_of_three_comes_about_equally_often() -> None:
    applications = many(3)
    seen = Counter("".join(one.id[1] for one in vary(applications, Variation(order=True), 0, n)) for n in range(600))
    assert len(seen) == 6
    assert min(seen.values()) > 70  # 100 expected


# -- tools


def test_durations_are_drawn_among_tools_of_the_same_kind_and_agent_type() -> None:
    applications = [
        *(app(f"a{index}", index, tool(1.0 + index)) for index in range(10)),
        *(app(f"b{index}", 10.0 + index, tool(100.0 + index), agent_type="reviewer") for index in range(10)),
        *(app(f"c{index}", 20.0 + index, tool(1000.0 + index, kind="build")) for index in range(10)),
    ]
    varied = durations(vary(applications, Variation(tools="fitted"), 0, 0))
    assert varied != durations(applications)
    own = {"a": range(1, 11), "b": range(100, 110), "c": range(1000, 1010)}
    assert all(duration_s in own[name[0]] for name, duration_s in varied.items())


def test_a_kind_whose_durations_are_all_equal_gets_no_noise() -> None:
    applications = [app(f"a{index}", index, tool(4.0, 4.0), tool(0.1 * index, kind="other")) for index in range(6)]
    varied = durations(vary(applications, Variation(tools="fitted"), 0, 0))
    assert {duration_s for name, duration_s in varied.items() if name.endswith("c0")} == {4.0}
    assert varied != durations(applications)


def test_what_a_tool_declares_is_drawn_with_its_duration() -> None:
    """A test of 1 s says 10, one of 2 s says 5: whoever reads the declarations learns no more than before."""
    applications = [app(f"a{index}", index, *(tool(1.0, 10.0), tool(2.0, 5.0))) for index in range(10)]
    varied = vary(applications, Variation(tools="fitted"), 0, 0)
    pairs = {(tool.duration_s, tool.declared_s) for one in varied for call in one.calls for tool in call.tools}
    assert pairs == {(1.0, 10.0), (2.0, 5.0)}


def test_a_tool_that_declares_nothing_goes_on_declaring_nothing() -> None:
    applications = [app(f"a{index}", index, tool(1.0 + index, None if index % 2 else 3.0)) for index in range(20)]
    for variation in (EVERYTHING, Variation(tools=0.3, declared=0.3)):
        varied = declared(vary(applications, replace(variation, arrivals=False, order=False), 0, 0))
        assert [said is None for said in varied.values()] == [index % 2 == 1 for index in range(20)]


def test_a_number_spreads_durations_about_what_they_were_and_leaves_declarations() -> None:
    applications = [app(f"a{index}", index, tool(10.0, 10.0)) for index in range(4000)]
    varied = vary(applications, Variation(tools=0.3), 0, 0)
    drawn = list(durations(varied).values())
    assert fmean(drawn) == pytest.approx(10.0, rel=0.02)
    assert pstdev(drawn) == pytest.approx(3.0, rel=0.05)
    assert declared(varied) == declared(applications)


# -- declarations


def test_exact_declarations_stay_exact_and_constant_ones_constant() -> None:
    exact = [app(f"a{index}", index, tool(1.0 + index, 1.0 + index)) for index in range(10)]
    constant = [app(f"a{index}", index, tool(1.0 + index, 5.0)) for index in range(10)]
    for tools in (None, "fitted", 0.3):
        variation = parse_variation("declared" if tools is None else f"tools={tools},declared".replace("=fitted", ""))
        assert variation.tools == tools
        varied = vary(exact, variation, 0, 0)
        assert list(declared(varied).values()) == pytest.approx(list(durations(varied).values()), rel=1e-5)
        assert set(declared(vary(constant, variation, 0, 0)).values()) == {5.0}


def test_errors_of_declarations_are_drawn_from_those_of_the_trace() -> None:
    """Half of the tests last twice as long as they say, whatever they last: so it stays, but for others."""
    applications = [
        app(f"a{index}", index, tool(duration_s, duration_s / (1 + half)))
        for index, (duration_s, half) in enumerate((d, h) for d in (1.0, 4.0, 16.0) for h in (0, 1) for _ in range(5))
    ]
    varied = vary(applications, Variation(declared="fitted"), 0, 0)
    assert durations(varied) == durations(applications)
    truth, said = durations(varied), declared(varied)
    ratios = Counter(round((said[name] or 0.0) / truth[name], 4) for name in truth)
    assert set(ratios) == {1.0, 0.5}
    assert min(ratios.values()) > 8
    assert said != declared(applications)


def test_what_says_nothing_about_the_truth_goes_on_saying_nothing() -> None:
    """Declarations that were drawn without the truth: their correlation stays near none."""
    applications = [app(f"a{index}", index, tool(1.0 + index % 7, 1.0 + index % 11)) for index in range(770)]
    varied = vary(applications, Variation(tools="fitted", declared="fitted"), 0, 0)
    truth, said = list(durations(varied).values()), [each or 0.0 for each in declared(varied).values()]
    covariance = fmean(a * b for a, b in zip(truth, said, strict=True)) - fmean(truth) * fmean(said)
    assert abs(covariance / (pstdev(truth) * pstdev(said))) < 0.1


def test_truths_without_spread_do_not_show_in_what_is_declared() -> None:
    applications = [app(f"a{index}", index, tool(4.0, 4.0)) for index in range(10)]
    varied = vary(applications, Variation(tools=0.3, declared="fitted"), 0, 0)
    assert len(set(durations(varied).values())) == 10
    assert set(declared(varied).values()) == {4.0}


def test_a_number_declares_the_truth_with_that_error_and_zero_without_one() -> None:
    applications = [app(f"a{index}", index, tool(1.0 + index % 3, 77.0)) for index in range(3000)]
    exact = vary(applications, Variation(declared=0.0), 0, 0)
    assert declared(exact) == durations(applications)
    rough = vary(applications, Variation(declared=0.3), 0, 0)
    said, truth = declared(rough), durations(applications)
    ratios = [(said[name] or 0.0) / truth[name] for name in truth]
    assert fmean(ratios) == pytest.approx(1.0, abs=0.02)
    assert pstdev(ratios) == pytest.approx(0.3, rel=0.05)


def test_two_tools_of_nearly_equal_length_give_no_wild_line() -> None:
    applications = [app("a0", 0, tool(1.0, 1.0)), app("a1", 1, tool(1.000001, 50.0))]
    for repeat in range(20):
        said = declared(vary(applications, Variation(tools=0.5, declared="fitted"), 0, repeat))
        assert all(0.01 < (each or 0.0) < 5000.0 for each in said.values())


# -- hints


def two_branches(first: Tool, second: Tool) -> Application:
    """A start, two branches with a tool each, and a join."""

    def call(name: str, after: tuple[str, ...], *tools: Tool) -> Call:
        prompt = Prompt((Segment("a0/task", 0, 10),), tokens=10)
        waited = tuple(f"a0/{each}" for each in after)
        return Call(f"a0/{name}", "a0", f"a0/{name}", "coder", prompt, 5, 5, after=waited, tools=tools)

    start, join = call("start", ()), call("join", ("left", "right"))
    return Application("a0", 0.0, (start, call("left", ("start",), first), call("right", ("start",), second), join))


def critical(application: Application) -> list[str]:
    return [call.id[3:] for call in application.calls if call.hints.critical_path]


def test_the_critical_path_follows_what_is_declared_now() -> None:
    application = with_hints(two_branches(tool(9.0, 1.0), tool(3.0, 2.0)))
    assert critical(application) == ["start", "right", "join"]
    (varied,) = vary([application], Variation(declared=0.0), 0, 0)
    assert critical(varied) == ["start", "left", "join"]


def test_the_critical_path_does_not_follow_true_durations() -> None:
    application = with_hints(two_branches(tool(1.0, 1.0), tool(2.0, 2.0)))
    for repeat in range(20):
        (varied,) = vary([application], Variation(tools=2.0), 0, repeat)
        assert critical(varied) == ["start", "right", "join"]


def test_a_critical_path_that_the_application_stated_stays() -> None:
    application = with_hints(two_branches(tool(9.0, 1.0), tool(3.0, 2.0)), {"a0/left": {"critical_path": True}})
    (varied,) = vary([application], Variation(declared=0.0), 0, 0)
    assert varied.calls[1].hints.critical_path
    assert not varied.calls[2].hints.critical_path


# -- draws


def test_one_aspect_more_leaves_the_draws_of_the_others() -> None:
    applications = [app(f"a{i}", [0, 1, 3, 4, 9, 11][i], tool(1.0 + i, 2.0 + i % 3)) for i in range(6)]
    everything = vary(applications, Variation(True, 0.3, 0.3, True), 5, 2)
    assert durations(everything) == durations(vary(applications, Variation(tools=0.3), 5, 2))
    assert arrivals(everything) == arrivals(vary(applications, Variation(arrivals=True), 5, 2))
    assert [one.id for one in everything] == [one.id for one in vary(applications, Variation(order=True), 5, 2)]


def test_an_application_less_at_the_end_leaves_the_noise_of_the_others() -> None:
    applications = many(10)
    drawn = durations(vary(applications, Variation(tools=0.3), 0, 0))
    assert durations(vary(applications[:9], Variation(tools=0.3), 0, 0)) == {
        name: duration_s for name, duration_s in drawn.items() if not name.startswith("a9/")
    }


@pytest.mark.parametrize("variation", [EVERYTHING, Variation(True, 0.3, 0.3, True), Variation(arrivals=True)], ids=str)
def test_the_same_trace_under_other_names_has_the_same_days(variation: Variation) -> None:
    applications = list(read_trace(Path(__file__).parents[3] / "examples" / "deep-research.jsonl"))
    applications += [one._replace(id=f"{one.id}+") for one in applications[-1:]]  # two at the same instant
    names = Names(applications, backwards)
    days = [vary(applications, variation, 3, repeat) for repeat in range(3)]
    assert [vary(names.of_all(applications), variation, 3, repeat) for repeat in range(3)] == [
        names.of_all(day) for day in days
    ]


def test_repeats_and_seeds_differ_and_each_comes_out_again() -> None:
    applications = many(10)
    drawn = [vary(applications, EVERYTHING, seed, repeat) for seed in (0, 1) for repeat in (0, 1, 2)]
    assert len(set(drawn)) == 6
    assert drawn == [vary(applications, EVERYTHING, seed, repeat) for seed in (0, 1) for repeat in (0, 1, 2)]


@given(st.tuples(dags("a0", 0.0), dags("a1", 3.0), dags("a2", 5.0)), VARIATIONS, st.integers(0, 3), st.integers(0, 3))
def test_whatever_varies_what_is_asked_for_stays(
    applications: tuple[Application, ...], variation: Variation, seed: int, repeat: int
) -> None:
    varied = vary(applications, variation, seed, repeat)
    assert arrivals(varied) == sorted(arrivals(varied))
    timeless = {one.id: _timeless(one) for one in varied}
    assert timeless == {one.id: _timeless(one) for one in applications}
    if variation == AS_IT_IS:
        assert varied == applications


def test_what_varies_can_be_written_and_read(tmp_path: Path) -> None:
    applications = list(read_trace(Path(__file__).parents[3] / "examples" / "deep-research.jsonl"))
    varied = vary(applications, Variation(True, 0.3, 0.3, True), 1, 1)
    write_trace(tmp_path / "varied.jsonl", varied)
    assert tuple(read_trace(tmp_path / "varied.jsonl")) == varied


def _timeless(application: Application) -> Application:
    """Without what may vary."""

    def call(one: Call) -> Call:
        tools = tuple(
            tool._replace(duration_s=0.0, declared_s=None if tool.declared_s is None else 0.0) for tool in one.tools
        )
        return one._replace(tools=tools, hints=one.hints._replace(critical_path=False))

    return application._replace(arrival_s=0.0, calls=tuple(map(call, application.calls)))


# -- words


def test_a_variation_is_read_as_it_is_written() -> None:
    for text in ("none", "arrivals", "arrivals,tools,declared,order", "tools=0.3,declared=0.0,order"):
        assert str(parse_variation(text)) == text
    assert parse_variation("order, tools=0.3") == Variation(tools=0.3, order=True)
    assert parse_variation("none") == AS_IT_IS
    assert str(EVERYTHING) == ",".join(ASPECTS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tool", "unknown 'tool' (near: tools): expected arrivals, tools, declared, order, or none"),
        ("", "unknown ''"),
        ("tools,tools=0.1", "tools: given twice"),
        ("order=2", "order: takes no number, got '2'"),
        ("tools=much", "tools: expected a number from 0 to 10, got 'much'"),
        ("declared=-1", "declared: expected a number from 0 to 10, got '-1'"),
        ("tools=nan", "tools: expected a number from 0 to 10, got 'nan'"),
    ],
)
def test_a_word_that_means_nothing_is_named(text: str, said: str) -> None:
    with pytest.raises(TraceError) as caught:
        parse_variation(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
