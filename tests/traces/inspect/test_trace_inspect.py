"""What is in a trace, and how much of its prompts was seen before."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tokens import common_prefix, context_of, prompt_of
from trace_files import dags, one_app, one_call, written

from tokencake.traces.apps import Application, Call, Prompt, Segment
from tokencake.traces.format.reader import read_trace
from tokencake.traces.inspect.inspection import Inspection, ToolGaps, inspect_trace
from tokencake.traces.inspect.sharing import Shared, Sharing


def inspect(folder: Path, *lines: object) -> Inspection:
    return inspect_trace(read_trace(written(folder, *lines)))


def test_the_contents_are_counted(tmp_path: Path):
    tools = [{"kind": "web", "duration_s": 1.0, "declared_s": 2.0}, {"kind": "web", "duration_s": 3.0}]
    found = inspect(
        tmp_path,
        one_app(
            one_call(agent="m", tools=tools), one_call(id="d", agent="m", after=["c"], prompt=[["x", 40]], pause_s=8)
        ),
        one_app(one_call(output=50), id="a1", arrival_s=2.5),
    )
    assert (found.applications, found.calls, found.agents, found.agent_types) == (2, 3, 2, {"c": 1, "m": 2})
    assert (found.span_s, found.total_prompt_tokens, found.total_output_tokens) == (2.5, 60, 60)
    assert (found.peak_context_tokens, found.pauses) == (60, 1)
    assert (found.prompt_tokens["mean"], found.prompt_tokens["p50"], found.prompt_tokens["max"]) == (20, 10, 40)
    assert found.output_tokens["max"] == 50
    assert found.calls_an_application["mean"] == 1.5
    assert found.pauses_s["max"] == 8.0
    gaps = found.tool_gaps["web"]
    assert isinstance(gaps, ToolGaps)
    assert (gaps.count, gaps.duration_s["mean"], gaps.duration_s["p50"], gaps.declared_share) == (2, 2.0, 2.0, 0.5)
    assert found.errors == ()


def test_sharing_is_told_apart_by_where_it_was_seen(tmp_path: Path):
    found = inspect(
        tmp_path,
        one_app(
            one_call(prompt=[["/system", 30], ["task", 10]]),
            one_call(id="d", after=["c"], extends="c", prompt=[["more", 5]]),  # 45 of 50 from c
        ),
        one_app(one_call(prompt=[["/system", 40], ["task", 20]]), id="a1"),  # 30 of 60 from a0
        one_app(one_call(prompt=[["/system", 10], ["task", 30]]), id="a2"),  # 10 of 40 from a0
    )
    assert found.total_prompt_tokens == 40 + 50 + 60 + 40
    assert found.shared_inside == 45 / 190
    assert found.shared_across == (30 + 10) / 190


def test_a_fork_at_the_end_of_a_segment_is_the_same_context(tmp_path: Path):
    found = inspect(
        tmp_path,
        one_app(
            one_call(prompt=[["s", 5], ["task", 5]]),
            one_call(id="d", after=["c"], extends="c", keep=5, prompt=[["x", 3]]),  # 5 of 8
            one_call(id="e", prompt=[["s", 5], ["x", 4]]),  # 8 of 9
        ),
    )
    assert found.shared_inside == (5 + 8) / (10 + 8 + 9)


def test_errors_are_collected_and_the_rest_is_counted(tmp_path: Path):
    found = inspect(
        tmp_path,
        one_app(one_call()),
        one_app(one_call(output="x"), id="a1"),
        one_app(one_call(), id="a0"),
        b"{",
        one_app(one_call(), id="a2"),
    )
    assert (found.applications, found.calls) == (2, 2)
    assert [str(error).rpartition("t.jsonl")[2].split(" expected")[0] for error in found.errors] == [
        ":3: calls[0].output:",
        ":4: id:",
        ":5:",
    ]


def test_twenty_errors_are_enough(tmp_path: Path):
    assert len(inspect(tmp_path, *[b"{"] * 50).errors) == 20


def test_a_wrong_count_in_the_header_is_an_error(tmp_path: Path):
    header = {"format": "tokencake.trace", "version": 1, "applications": 3}
    found = inspect_trace(read_trace(written(tmp_path, one_app(one_call()), header=header)))
    assert [str(error).rpartition("t.jsonl: ")[2] for error in found.errors] == [
        "the file ends early: it holds 1 application, its header says 3"
    ]


def test_more_than_the_header_counts_is_an_error(tmp_path: Path):
    header = {"format": "tokencake.trace", "version": 1, "applications": 1}
    lines = [one_app(one_call(), id=name) for name in ("a", "b")]
    found = inspect_trace(read_trace(written(tmp_path, *lines, header=header)))
    assert [str(error).rpartition("t.jsonl: ")[2] for error in found.errors] == [
        "the file goes on behind its last application: it holds 2 applications, its header says 1"
    ]


def test_the_count_is_not_held_against_lines_that_are_wrong_themselves(tmp_path: Path):
    header = {"format": "tokencake.trace", "version": 1, "applications": 2}
    found = inspect_trace(read_trace(written(tmp_path, one_app(one_call()), b"{", header=header)))
    assert [str(error).rpartition("t.jsonl")[2][:3] for error in found.errors] == [":3:"]


def test_an_empty_trace(tmp_path: Path):
    found = inspect(tmp_path)
    assert (found.applications, found.calls, found.shared_inside, found.prompt_tokens["mean"]) == (0, 0, 0.0, None)


def spelled_out(applications: list[Application]) -> list[Shared]:
    """The definition: the longest prefix that any earlier context of the application, or of the trace, begins with."""
    result = []
    others: list[list[tuple[str, int]]] = []
    for application in applications:
        own: list[list[tuple[str, int]]] = []
        for call in application.calls:
            prompt = prompt_of(application, call.id)
            inside = max((common_prefix(prompt, context) for context in own), default=0)
            anywhere = max((common_prefix(prompt, context) for context in others), default=0)
            result.append(Shared(inside, max(0, anywhere - inside)))
            own.append(context_of(application, call.id))
        others += own
    return result


@given(first=dags("a0"), second=dags("a1"), third=dags("a2"))
def test_sharing_is_what_spelling_all_tokens_out_says(first: Application, second: Application, third: Application):
    trace = [first, second, third]
    sharing = Sharing()
    assert [shared for application in trace for shared in sharing.of(application)] == spelled_out(trace)


SHARED = st.builds(Segment, st.sampled_from(["/s", "/t"]), st.integers(0, 6), st.integers(1, 8))


@given(prompts=st.lists(st.lists(SHARED, min_size=1, max_size=4), min_size=1, max_size=6))
def test_prompts_that_are_split_differently_share_the_same(prompts: list[list[Segment]]):
    trace = []
    for at, segments in enumerate(prompts):
        prompt = Prompt(tuple(segments), tokens=sum(segment.tokens for segment in segments))
        trace.append(Application(f"a{at}", 0.0, (Call(f"a{at}/c", f"a{at}", f"a{at}/c", "c", prompt, 3, 3),)))
    sharing = Sharing()
    assert [sharing.of(application)[0] for application in trace] == spelled_out(trace)
