"""Workloads of our own: the published code writer as published, deep research, chat."""

import statistics
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import combinations, islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokens import assert_well_formed, common_prefix, prompt_of

from tokencake.traces.apps import Application, Call, Segment
from tokencake.traces.errors import TraceError
from tokencake.traces.format.reader import read_trace
from tokencake.traces.format.writer import write_trace
from tokencake.traces.generate.workloads import chat, code_writer, deep_research


def calls_of(application: Application) -> dict[str, Call]:
    return {call.id.partition("/")[2]: call for call in application.calls}


# the code writer


def test_the_code_writer_has_the_published_shape() -> None:
    applications = list(code_writer())
    calls = [call for application in applications for call in application.calls]
    assert len(applications) == 24
    assert len(calls) == 648
    for application in applications:
        assert_well_formed(application)
        assert len(application.calls) == 27
        assert sum(call.output_tokens for call in application.calls) == 6_464
    assert 9_050 <= statistics.mean(call.prompt_tokens for call in calls) <= 9_073


def test_it_has_36_edges_with_those_of_its_start_and_end() -> None:
    calls = next(code_writer()).calls
    awaited = {name for call in calls for name in call.after}
    starts = [call for call in calls if not call.after]
    ends = [call.id for call in calls if call.id not in awaited]
    assert sum(len(call.after) for call in calls) + len(starts) + len(ends) == 36
    assert ends == ["a0/revised_code_write_1", "a0/revised_code_write_2", "a0/test_node"]


def test_depths_count_the_start_and_the_end_too() -> None:
    calls = next(code_writer()).calls
    depth: dict[str, int] = {}
    for call in calls:
        depth[call.id] = 1 + max((depth[name] for name in call.after), default=1)
        assert call.hints.depth == depth[call.id]
    assert max(depth.values()) + 2 == 17
    assert {call.hints.max_depth for call in calls} == {17}


def test_applications_arrive_evenly() -> None:
    assert [application.arrival_s for application in code_writer(apps=5, qps=0.4)] == [i / 0.4 for i in range(5)]


def test_only_the_fixed_instructions_are_shared_between_applications() -> None:
    first, second = code_writer(apps=2)
    prompts = [prompt_of(first, call.id) for call in first.calls], [prompt_of(second, call.id) for call in second.calls]
    assert {common_prefix(left, right) for left, right in zip(*prompts, strict=True)} == {540}
    assert len(set(prompts[0][0][540:]) & {token for prompt in prompts[1] for token in prompt}) == 0


def test_a_call_appends_its_own_instruction_to_what_its_predecessor_left() -> None:
    application = next(code_writer())
    calls = calls_of(application)
    assert calls["architect_1"].prompt_tokens == 540 + 3_990 + 18
    judger = calls["judger_1"]
    assert judger.prompt.extends == "a0/search_1"
    assert judger.prompt.keep_tokens == calls["search_1"].prompt_tokens + 128
    assert judger.prompt.segments == (
        Segment("a0/search_1.result", 0, 420),
        Segment("a0/judger_1.instruction", 0, 52),
    )


def test_a_join_keeps_the_common_prefix_once_and_appends_the_branches_in_order() -> None:
    application = next(code_writer())
    calls = calls_of(application)
    review = prompt_of(application, "a0/reviewer_1")
    assert len(review) == len(set(review)), "no token twice"
    common = calls["file_write_plan"].prompt_tokens + 128 + 170
    branch = (14 + 400 + 250) + (14 + 400) + (30 + 128 + 170)
    assert len(review) == common + 3 * branch + 14
    of_branches = [source for source, place in review if place == 0 and source.startswith("a0/code_write_")]
    assert of_branches == [
        f"a0/code_write_{number}{part}" for number in (1, 2, 3) for part in (".instruction", "", ".result")
    ]


def test_agents_continue_one_context() -> None:
    calls = next(code_writer()).calls
    agents: dict[str, list[str]] = {}
    for call in calls:
        agents.setdefault(call.agent, []).append(call.id)
    extended = {call.id: call.prompt.extends for call in calls}
    assert len(agents) == 8
    for ids in agents.values():
        assert [extended[later] for later in ids[1:]] == ids[:-1]


def test_tools_are_declared_truly_and_reuse_is_announced_where_published() -> None:
    calls = calls_of(next(code_writer()))
    assert all(tool.declared_s == tool.duration_s for call in calls.values() for tool in call.tools)
    assert calls["programmer_1_validate_patch"].tools[0].duration_s == 8.0
    assert calls["search_1"].hints.reusable
    assert not calls["test_node"].hints.reusable
    assert calls["reviser_1_repair"].hints.memory_weight == 2.2


def test_with_spread_zero_the_seed_changes_nothing() -> None:
    assert list(code_writer(apps=2, seed=1)) == list(code_writer(apps=2, seed=2))


def test_a_spread_varies_the_task_and_the_results_within_bounds() -> None:
    applications = list(code_writer(apps=20, spread=0.1, seed=3))
    tasks = [application.calls[0].prompt.segments[1].tokens for application in applications]
    results = [call.tools[0].result_tokens for a in applications for call in a.calls if call.id.endswith("/search_1")]
    assert len(set(tasks)) > 10
    assert 3_591 <= min(tasks) < 3_800
    assert 4_200 < max(tasks) <= 4_389
    assert 378 <= min(results) < max(results) <= 462
    for application in applications:
        assert_well_formed(application)
        assert application.calls[0].prompt.segments[0].tokens == 540


def test_nothing_shared_is_possible() -> None:
    first, second = code_writer(apps=2, shared_tokens=0)
    assert common_prefix(prompt_of(first, "a0/test_node"), prompt_of(second, "a1/test_node")) == 0


# deep research


def test_deep_research_plans_searches_in_parallel_and_writes() -> None:
    for application in deep_research(apps=10, seed=1):
        assert_well_formed(application)
        calls = calls_of(application)
        reports = [call for name, call in calls.items() if name.endswith("_report")]
        assert 3 <= len(reports) <= 6
        assert calls["plan"].agent == calls["write"].agent
        assert calls["write"].after == (f"{application.id}/plan", *(report.id for report in reports))
        assert calls["write"].prompt.extends == calls["plan"].id
        first_rounds = [call for name, call in calls.items() if name.endswith("_round_1")]
        assert all(call.after == (calls["plan"].id,) for call in first_rounds)
        for left, right in combinations(first_rounds, 2):
            assert common_prefix(prompt_of(application, left.id), prompt_of(application, right.id)) == 1_200


def test_web_searches_are_declared_and_fetches_are_not() -> None:
    tools = [tool for application in deep_research(apps=40) for call in application.calls for tool in call.tools]
    fetches = [tool for tool in tools if tool.kind == "web_fetch"]
    assert {tool.declared_s for tool in fetches} == {None}
    assert {tool.declared_s for tool in tools if tool.kind == "web_search"} == {2.0}
    durations_s = sorted(tool.duration_s for tool in fetches)
    assert 6.0 < statistics.median(durations_s) < 10.0
    assert durations_s[-1] <= 60.0
    assert durations_s[-1] > 10 * durations_s[0]


# all of them

GENERATORS: list[Callable[[int], Iterator[Application]]] = [
    lambda seed: code_writer(apps=6, qps=0.5, arrivals="poisson", spread=0.2, seed=seed),
    lambda seed: deep_research(apps=6, qps=0.5, arrivals="poisson", seed=seed),
    lambda seed: chat(6, rate=0.5, seed=seed),
]


@pytest.mark.parametrize("generate", GENERATORS)
def test_equal_seeds_give_equal_traces_and_others_do_not(generate: Callable[[int], Iterator[Application]]) -> None:
    assert list(generate(7)) == list(generate(7))
    assert list(generate(7)) != list(generate(8))


def test_seeds_mean_the_same_on_every_machine() -> None:
    assert [a.arrival_s for a in chat(3, rate=1.0, seed=0)] == [0.373822, 0.901997, 1.523688]


@given(seed=st.integers(0, 10_000))
def test_arrivals_never_go_back(seed: int) -> None:
    times = [application.arrival_s for application in chat(50, rate=10.0, seed=seed)]
    assert times == sorted(times)
    assert times[0] >= 0


def test_poisson_arrivals_have_the_rate() -> None:
    *_, last = chat(4_000, rate=5.0, seed=1)
    assert last.arrival_s == pytest.approx(4_000 / 5.0, rel=0.05)  # three standard deviations of 4,000 gaps


def test_chat_requests_share_nothing() -> None:
    first, second = chat(2, rate=1.0, prompt_tokens=3, output_tokens=2)
    assert_well_formed(first)
    assert prompt_of(first, "c0/call") == [("c0/prompt", 0), ("c0/prompt", 1), ("c0/prompt", 2)]
    assert not set(prompt_of(first, "c0/call")) & set(prompt_of(second, "c1/call"))


def test_chat_needs_no_more_memory_for_more_calls() -> None:
    endless = chat(10**9, rate=10.0)
    next(endless)
    tracemalloc.start()
    for _ in islice(endless, 5_000):
        pass
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 50_000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: code_writer(apps=-1), "apps: expected a whole number, at least 0, got -1"),
        (lambda: code_writer(apps=10**9), "apps: expected at most 1,000,000, got 1,000,000,000"),
        (lambda: code_writer(qps=0.0), "rate: expected a number of applications a second from 1e-06 to 1e+06, got 0.0"),
        (
            lambda: deep_research(qps=float("nan")),
            "rate: expected a number of applications a second from 1e-06 to 1e+06, got nan",
        ),
        (lambda: code_writer(arrivals="bursty"), "arrivals: expected one of even, poisson, got 'bursty'"),  # type: ignore[arg-type]
        (lambda: code_writer(spread=1.0), "spread: expected a number from 0 to below 1, got 1.0"),
        (lambda: chat(1, 1.0, prompt_tokens=0), "prompt_tokens: expected a whole number, at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TraceError) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize("generate", GENERATORS)
def test_a_generated_trace_is_read_as_it_was_written(
    tmp_path: Path, generate: Callable[[int], Iterator[Application]]
) -> None:
    write_trace(tmp_path / "out.jsonl", generate(1))
    assert list(read_trace(tmp_path / "out.jsonl")) == list(generate(1))


# the traces that ship

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_the_shipped_code_writer_trace_is_what_the_generator_makes() -> None:
    assert list(read_trace(EXAMPLES / "code-writer.jsonl")) == list(code_writer(apps=24, qps=1.0))


def test_the_shipped_deep_research_trace_is_what_the_generator_makes() -> None:
    assert list(read_trace(EXAMPLES / "deep-research.jsonl")) == list(deep_research(apps=24, qps=0.1))


def test_the_shipped_traces_are_small() -> None:
    assert all((EXAMPLES / name).stat().st_size < 300_000 for name in ("code-writer.jsonl", "deep-research.jsonl"))
