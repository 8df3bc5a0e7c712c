"""Recorded coding conversations become applications: every rule on a conversation that fits on a screen."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokens import assert_well_formed, common_prefix, prompt_of

from tokencake.traces.apps import Application, Call, Segment, Tool
from tokencake.traces.convert.formats import convert
from tokencake.traces.errors import TraceError

Entry = dict[str, Any]


def request(t: float, prompt: int, ids: list[int], **fields: object) -> Entry:
    """A request in the recording's format. Blocks are 64 tokens; the model takes 2 s."""
    return {
        "t": t,
        "type": "n",
        "in": prompt,
        "out": 10,
        "hash_ids": ids,
        "input_types": ["tool_result"],
        "output_types": ["tool_use"],
        "api_time": 2.0,
        "think_time": 3.0,
        **fields,
    }


def subagent(name: str, ended: float, seconds: float, requests: list[Entry]) -> Entry:
    duration_ms = round(seconds * 1000)
    return {
        "t": ended,
        "type": "subagent",
        "agent_id": name,
        "subagent_type": "Explore",
        "duration_ms": duration_ms,
        "requests": requests,
    }


def conversation(*requests: Entry, name: str = "talk") -> Entry:
    return {"id": name, "block_size": 64, "hash_id_scope": "local", "requests": list(requests)}


def converted(tmp_path: Path, *requests: Entry) -> Application:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(conversation(*requests)), encoding="utf-8")
    (application,) = convert(path, "agentic-coding")
    assert_well_formed(application)
    return application


def calls_of(application: Application) -> dict[str, Call]:
    return {call.id.partition("/")[2]: call for call in application.calls}


# prompts


def test_consecutive_blocks_are_one_segment_and_the_unlisted_rest_is_private(tmp_path: Path) -> None:
    application = converted(tmp_path, request(0, 4 * 64 + 5, [7, 8, 9, 3]))
    assert application.calls[0].prompt.segments == (
        Segment("talk/blocks", 7 * 64, 3 * 64),
        Segment("talk/blocks", 3 * 64, 64),
        Segment("talk/main_1.rest", 0, 5),
    )
    assert application.calls[0].prompt_tokens == 261


def test_a_partly_filled_block_that_is_listed_is_cut(tmp_path: Path) -> None:
    application = converted(tmp_path, request(0, 64 + 5, [7, 8]))
    assert application.calls[0].prompt.segments == (Segment("talk/blocks", 7 * 64, 69),)


def test_a_prompt_says_only_what_is_new_since_the_agents_previous_one(tmp_path: Path) -> None:
    application = converted(tmp_path, request(0, 130, [1, 2]), request(5, 260, [1, 2, 3, 4]))
    second = application.calls[1]
    assert (second.prompt.extends, second.prompt.keep_tokens) == ("talk/main_1", 128)
    assert second.prompt.segments == (Segment("talk/blocks", 3 * 64, 128), Segment("talk/main_2.rest", 0, 4))
    assert second.prompt_tokens == 260


def test_a_compacted_context_shares_what_it_kept(tmp_path: Path) -> None:
    application = converted(tmp_path, request(0, 256, [1, 2, 3, 4]), request(5, 192, [1, 9, 4]))
    first, second = (prompt_of(application, call.id) for call in application.calls)
    assert common_prefix(first, second) == 64
    assert second[128:] == first[192:], "block 4 has the same content in another place"
    assert application.calls[0].tools[0].result_tokens == 0, "the prompt shrank"


def test_a_context_begun_anew_extends_nothing(tmp_path: Path) -> None:
    application = converted(tmp_path, request(0, 128, [1, 2]), request(5, 64, [9]))
    assert application.calls[1].prompt.extends is None
    assert application.calls[1].prompt.keep_tokens == 0


def test_a_listed_block_that_fills_up_is_shared_only_as_a_whole(tmp_path: Path) -> None:
    application = converted(tmp_path, request(0, 100, [1, 2]), request(5, 128, [1, 2]), request(9, 100, [1, 2]))
    assert [call.prompt.keep_tokens for call in application.calls] == [0, 64, 64]
    assert [len(prompt_of(application, call.id)) for call in application.calls] == [100, 128, 100]


# waiting


def test_the_time_before_a_tool_result_is_the_previous_calls_tool(tmp_path: Path) -> None:
    application = converted(tmp_path, request(0, 64, [1]), request(9, 192, [1, 2, 3], think_time=7.0))
    first, second = application.calls
    assert first.tools == (Tool("tool", 7.0, declared_s=None, result_tokens=192 - 64 - 10),)
    assert second.after == (first.id,)
    assert second.pause_s == 0.0
    assert second.tools == ()


def test_the_time_before_a_text_is_a_persons_pause(tmp_path: Path) -> None:
    application = converted(tmp_path, request(0, 64, [1]), request(5, 128, [1, 2], input_types=["text"]))
    first, second = application.calls
    assert first.tools == ()
    assert second.pause_s == 3.0


@pytest.mark.parametrize(("took", "pause_s"), [({"api_time": 2.0}, 7.0), ({"api_time": None}, 9.0)])
def test_an_unrecorded_pause_is_what_lies_between_the_requests(tmp_path: Path, took: Entry, pause_s: float) -> None:
    unrecorded = request(9, 128, [1, 2], input_types=["text"], think_time=None)
    application = converted(tmp_path, request(0, 64, [1], **took), unrecorded)
    assert application.calls[1].pause_s == pause_s


def test_nothing_is_waited_for_before_the_first_request(tmp_path: Path) -> None:
    application = converted(tmp_path, request(4, 64, [1], think_time=99.0))
    assert application.calls[0].pause_s == 0.0
    assert application.calls[0].after == ()


# sub-agents


def two_subagents() -> list[Entry]:
    """The first answer, at 2 s, starts two sub-agents that end at 12 and 16 s; the next request follows at 20 s."""
    return [
        request(0, 64, [1]),
        subagent("agent_001", 12.0, 10.0, [request(0, 64, [50]), request(5, 128, [50, 51])]),
        subagent("agent_002", 16.0, 14.0, [request(0, 128, [50, 60])]),
        request(20, 128, [1, 2], think_time=18.0),
        request(25, 192, [1, 2, 3]),
    ]


def test_sub_agents_run_side_by_side_and_their_parent_waits_for_them(tmp_path: Path) -> None:
    calls = calls_of(converted(tmp_path, *two_subagents()))
    assert list(calls) == ["main_1", "agent_001_1", "agent_002_1", "agent_001_2", "main_2", "main_3"]
    assert calls["agent_001_1"].after == calls["agent_002_1"].after == ("talk/main_1",)
    assert calls["agent_001_2"].after == ("talk/agent_001_1",)
    assert calls["main_2"].after == ("talk/main_1", "talk/agent_001_2", "talk/agent_002_1")
    assert calls["main_3"].after == ("talk/main_2",)
    assert {call.agent_type for call in calls.values()} == {"main", "Explore"}


def test_what_passes_after_the_last_sub_agent_is_a_pause_and_no_tool(tmp_path: Path) -> None:
    calls = calls_of(converted(tmp_path, *two_subagents()))
    assert calls["main_1"].tools == ()
    assert calls["main_2"].pause_s == 20.0 - 9.0, "from the end of the last call, agent_001_2, on"
    assert calls["agent_001_1"].tools == (Tool("tool", 3.0, result_tokens=128 - 64 - 10),)


def test_sub_agents_share_the_conversations_blocks(tmp_path: Path) -> None:
    application = converted(tmp_path, *two_subagents())
    first, second = (prompt_of(application, f"talk/{name}_1") for name in ("agent_001", "agent_002"))
    assert common_prefix(first, second) == 64


def test_a_sub_agent_in_the_background_starts_where_it_began(tmp_path: Path) -> None:
    """It ran from 2 to 30 s, so the first request started it, although others came before it in the list."""
    background = subagent("agent_001", 30.0, 28.0, [request(0, 64, [50])])
    requests = [request(0, 64, [1]), request(5, 128, [1, 2]), background, request(31, 192, [1, 2, 3])]
    calls = calls_of(converted(tmp_path, *requests))
    assert calls["agent_001_1"].after == ("talk/main_1",)
    assert calls["main_3"].after == ("talk/main_2", "talk/agent_001_1")


def test_sub_agents_can_have_sub_agents(tmp_path: Path) -> None:
    inner = subagent("inner", 6.0, 4.0, [request(0, 64, [70])])
    outer = subagent("outer", 12.0, 10.0, [request(0, 64, [50]), inner, request(8, 128, [50, 51])])
    calls = calls_of(converted(tmp_path, request(0, 64, [1]), outer, request(15, 128, [1, 2])))
    assert calls["inner_1"].after == ("talk/outer_1",)
    assert calls["outer_2"].after == ("talk/outer_1", "talk/inner_1")
    assert calls["main_2"].after == ("talk/main_1", "talk/outer_2")


def test_a_sub_agent_without_requests_is_not_there(tmp_path: Path) -> None:
    application = converted(tmp_path, request(0, 64, [1]), subagent("a", 5.0, 3.0, []), request(9, 128, [1, 2]))
    assert [call.id for call in application.calls] == ["talk/main_1", "talk/main_2"]
    assert application.calls[1].after == ("talk/main_1",)


# hints, arrivals, files


def test_hints_are_derived(tmp_path: Path) -> None:
    calls = calls_of(converted(tmp_path, *two_subagents()))
    assert calls["main_1"].hints.reusable
    assert not calls["main_3"].hints.reusable
    assert calls["main_3"].hints.max_depth == 5


def write_conversations(folder: Path, *names: str) -> Path:
    for name in names:
        text = json.dumps(conversation(request(0, 64, [1]), name=name))
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


def test_a_folders_files_arrive_by_name_one_a_minute(tmp_path: Path) -> None:
    applications = list(convert(write_conversations(tmp_path, "b", "c", "a"), "agentic-coding"))
    assert [(one.id, one.arrival_s) for one in applications] == [
        ("a", 0),
        ("b", 60),
        ("c", 120),
    ]


def test_the_rate_can_be_chosen(tmp_path: Path) -> None:
    folder = write_conversations(tmp_path, "a", "b", "c")
    assert [a.arrival_s for a in convert(folder, "agentic-coding", rate=0.5)] == [0, 2, 4]
    poisson = [a.arrival_s for a in convert(folder, "agentic-coding", rate=0.5, arrivals="poisson", seed=1)]
    assert poisson == sorted(poisson)
    assert poisson != [0, 2, 4]


def test_two_files_of_one_conversation_are_refused(tmp_path: Path) -> None:
    folder = write_conversations(tmp_path, "a")
    (folder / "b.json").write_text((folder / "a.json").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(TraceError, match=r"b\.json: id: expected another id than that of .*a\.json"):
        list(convert(folder, "agentic-coding"))


# bad input

BAD_REQUESTS: list[tuple[Entry, str]] = [
    ({"in": -1}, "requests[1].in: expected a whole number from 1 to 2147483647, got -1"),
    ({"in": 1e9}, "requests[1].in: expected a whole number from 1 to 2147483647, got 1000000000.0"),
    ({"out": -1}, "requests[1].out: expected a whole number from 1 to 2147483647, got -1"),
    ({"out": True}, "requests[1].out: expected a whole number from 1 to 2147483647, got true"),
    ({"t": "soon"}, 'requests[1].t: expected a number, at least 0 and below 4.2e+09, got "soon"'),
    ({"t": 10**400}, "requests[1].t: expected a number, at least 0 and below 4.2e+09, got a number"),
    ({"think_time": -2.0}, "requests[1].think_time: expected a number, at least 0 and below 4.2e+09, got -2.0"),
    ({"hash_ids": [1]}, "requests[1].hash_ids: expected an id for each 64 of the 128 tokens, got a list"),
    ({"hash_ids": [1, "2"]}, "requests[1].hash_ids: expected a list of whole numbers, got a list"),
    ({"hash_ids": [1, -2]}, "requests[1].hash_ids: expected whole numbers from 0 to 18446744073709551615, got a list"),
    ({"input_types": "text"}, 'requests[1].input_types: expected a list of texts, got "text"'),
    ({"type": "x"}, 'requests[1].type: expected "n", "s" or "subagent", got "x"'),
    ({"t": 1760000000000}, "requests[1].t: expected a time in s (--time-unit ms says otherwise), got 1760000000000"),
    (subagent("main", 3.0, 1.0, []), "requests[1].agent_id: expected an agent that did not occur before"),
    (subagent("a" * 151, 3.0, 1.0, []), "requests[1].agent_id: expected at most 150 characters"),
    (subagent("a/b", 3.0, 1.0, []), "requests[1].agent_id: expected 1 to 200 printable characters without"),
    (subagent("a", 3.0, 1.0, [{"type": "n", "t": None}]), "requests[1].requests[0].t: expected a number, at least 0"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_REQUESTS)
def test_a_bad_field_is_named(tmp_path: Path, fields: Entry, message: str) -> None:
    bad = fields if fields.get("type") == "subagent" else {**request(5, 128, [1, 2]), **fields}
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(conversation(request(0, 64, [1]), bad)), encoding="utf-8")
    with pytest.raises(TraceError) as error:
        list(convert(path, "agentic-coding"))
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


BAD_FILES: list[tuple[bytes, str]] = [
    (b"", ": expected at least one request, got none"),
    (b"{", ": expected JSON, but Expecting property name enclosed in double quotes: line 1 column 2"),
    (b"\x80\xff", ": expected UTF-8 text, but it holds other bytes"),
    (b"[1]", ": [0]: expected an object, got 1"),
    (b'{"id": "a", "block_size": NaN}', ": expected JSON, but it holds NaN, which is no number"),
    (b'{"id": "a", "block_size": 64, "requests": []}', ": expected at least one request, got only conversa"),
    (b'{"id": "a", "block_size": 64}', ": requests: expected a list, got null"),
    (b'{"id": "a", "block_size": 0}', ": block_size: expected a whole number from 1"),
    (b"[" * 100_000, ": [0]: expected JSON of reasonable depth, got lists or objects nested too deep"),
    (b'{"id": ' + b"9" * 5_000 + b"}", ": expected numbers of at most 4300 digits, got one of 5000"),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(content)
    with pytest.raises(TraceError) as error:
        list(convert(path, "agentic-coding"))
    assert str(error.value).startswith(f"{path}{message}")
    assert "\n" not in str(error.value)


def test_sub_agents_without_end_are_refused(tmp_path: Path) -> None:
    entry = request(0, 64, [1])
    for depth in range(30):
        entry = subagent(f"agent_{depth}", 5.0, 5.0, [entry])
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(conversation(entry)), encoding="utf-8")
    with pytest.raises(TraceError, match="expected sub-agents nested at most 16 deep"):
        list(convert(path, "agentic-coding"))


def test_an_empty_folder_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"expected a directory with \.json files, found none"):
        list(convert(tmp_path, "agentic-coding"))
    with pytest.raises(TraceError, match=r"gone: cannot be read: No such file or directory"):
        list(convert(tmp_path / "gone", "agentic-coding"))
