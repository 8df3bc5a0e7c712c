"""The client of a server, against one that a test makes up: what it sends, what it gathers, and what it says when the
server is not what it has to be."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the client of a server needs it: pip install tokencake[connect]")

from made_up_server import MODEL, TOKEN, VOCABULARY, MadeUpServer, made_up_server
from trace_files import applications, written

from tokencake.cli import run
from tokencake.live.client.in_process import LiveStats
from tokencake.live.client.remote.remote import Remote, _Facts
from tokencake.live.client.remote.server import _batches
from tokencake.policies.run_settings import RunSettings
from tokencake.traces import events as e
from tokencake.traces.apps import Application
from tokencake.traces.errors import EngineError, RunError
from tokencake.traces.results.metrics import Metrics

# `look` and `read` run side by side; `edit` goes on where `plan` ended, and `finish` where `edit` did, half cut off.
AGENT: dict[str, object] = {
    "id": "fix",
    "arrival_s": 0.02,
    "calls": [
        {"id": "plan", "agent": "main", "prompt": [["/system", 40], ["task", 25]], "output": 12},
        {
            "id": "look",
            "agent": "search",
            "after": ["plan"],
            "prompt": [["plan", 12]],
            "output": 6,
            "max_output": 64,
            "tools": [{"kind": "web", "duration_s": 0.05, "declared_s": 0.5, "result": 9}],
        },
        {"id": "read", "agent": "reader", "after": ["plan"], "prompt": [["/system", 40], ["files", 30]], "output": 5},
        {"id": "edit", "agent": "main", "after": ["plan", "look", "read"], "extends": "plan", "prompt": [["found", 20]],
         "output": 8, "tools": [{"kind": "test", "duration_s": 0.03, "result": 4}], "hints": {"importance": 3}},
        {"id": "finish", "agent": "main", "after": ["edit"], "extends": "edit", "keep": 101, "prompt": [["log", 4]],
         "output": 7},
    ],
}  # fmt: skip
CHAT: dict[str, object] = {
    "id": "chat",
    "arrival_s": 0.0,
    "calls": [{"id": "c", "prompt": [["/system", 40]], "output": 9}],
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of somebody who has the control token, and no proxy."""
    names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir", "openai_api_key")
    for name in names:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("TOKENCAKE_CONTROL_TOKEN", TOKEN)


@pytest.fixture
def server() -> Iterator[MadeUpServer]:
    with made_up_server() as made_up:
        yield made_up


@pytest.fixture
def trace(tmp_path: Path) -> list[Application]:
    return applications(tmp_path, CHAT, AGENT)


def prompts(server: MadeUpServer) -> dict[str, list[int]]:
    return {call["call"]: call["prompt"] for call in server.calls}


def test_every_call_is_sent_once_with_the_prompt_and_the_answer_of_the_trace(
    server: MadeUpServer, trace: list[Application]
) -> None:
    stats = Remote(server.url, MODEL).play(trace, RunSettings())
    sent = {call["call"]: call for call in server.calls}
    assert len(server.calls) == stats.calls == 6
    assert stats.applications == 2
    for application in trace:
        for call in application.calls:
            said = sent[call.id]
            assert len(said["prompt"]) == call.prompt_tokens
            assert all(0 <= token < VOCABULARY for token in said["prompt"])
            assert said["max_tokens"] == said["min_tokens"] == call.output_tokens
            assert (said["model"], said["temperature"], said["ignore_eos"]) == (MODEL, 0, True)
    assert {name for name, call in sent.items() if call["last"]} == {"chat/c", "fix/finish"}


def test_prompts_share_what_they_share_in_the_trace_and_contain_what_the_model_said(
    server: MadeUpServer, trace: list[Application]
) -> None:
    Remote(server.url, MODEL).play(trace, RunSettings())
    sent = prompts(server)
    answers = {record.call: record for record in server.records if isinstance(record, e.CallFinished)}
    assert len(answers) == 6
    assert sent["fix/plan"][:40] == sent["fix/read"][:40] == sent["chat/c"][:40]
    assert sent["fix/plan"][40:52] != sent["fix/read"][40:52]
    assert sent["fix/edit"][:65] == sent["fix/plan"]
    said_by_plan = sent["fix/edit"][65:77]
    assert sent["fix/look"] == said_by_plan
    place = server.places()["call fix/plan"] + 1
    assert said_by_plan == [place + token for token in range(12)]  # as the made-up server answers
    assert sent["fix/finish"][:97] == sent["fix/edit"]
    assert len(sent["fix/finish"]) == 101 + 4


def test_events_and_calls_come_in_the_order_in_which_they_are_due(
    server: MadeUpServer, trace: list[Application]
) -> None:
    Remote(server.url, MODEL).play(trace, RunSettings())
    at = server.places()
    order = ["run", "app_started fix", "call fix/plan", "call fix/look", "tool_returned fix/look", "call fix/edit",
             "tool_returned fix/edit", "call fix/finish", "app_finished fix", "end"]  # fmt: skip
    assert [at[name] for name in order] == sorted(at[name] for name in order)
    assert at["run"] < at["app_started chat"] < at["call chat/c"] < at["app_finished chat"] < at["end"]
    started = server.log[at["app_started fix"]][1]
    assert started["at_s"] == 0.02  # when it was due, not when it was sent
    returned = server.log[at["tool_returned fix/look"]][1]
    assert (returned["app"], returned["agent"], returned["call"]) == ("fix", "search", "look")


def test_what_is_known_of_a_call_travels_with_it(server: MadeUpServer, trace: list[Application]) -> None:
    Remote(server.url, MODEL).play(trace, RunSettings())
    arrived = {fact.request.id: fact.request for fact in server.records if isinstance(fact, e.CallArrived)}
    calls = {call.id: call for application in trace for call in application.calls}
    assert arrived.keys() == calls.keys()
    for name, request in arrived.items():
        call = calls[name]
        assert (request.app, request.agent, request.agent_type) == (call.app, call.agent, call.agent_type)
        assert (request.max_output_tokens, request.hints) == (call.max_output_tokens, call.hints)
        assert [tuple(tool) for tool in request.tools] == [(tool.kind, tool.declared_s) for tool in call.tools]


def test_the_servers_facts_reach_sinks_and_journal(server: MadeUpServer, trace: list[Application]) -> None:
    facts: list[Any] = []
    journal: list[Any] = []
    stats = Remote(server.url, MODEL).play(
        trace, RunSettings(policy="tokencake", seed=3), [facts.append], journal.append
    )
    assert journal == server.records
    assert facts == [record for record in journal if not isinstance(record, e.Planned)]
    assert [type(facts[0]), type(facts[-1])] == [e.RunStarted, e.Occupied]
    assert (stats.steps, stats.policy_s, list(stats.errors)) == (7, 0.25, ["a policy raised"])
    said = server.log[0][1]
    assert (said["policy"], said["seed"], said["keep_facts"]) == ("tokencake", 3, True)


def test_lateness_is_from_when_a_call_was_due_until_the_server_had_it(
    server: MadeUpServer, trace: list[Application]
) -> None:
    lateness_s = 0.5

    def later() -> float:
        return MadeUpServer.now_s(server) + lateness_s

    server.now_s = later  # type: ignore[method-assign]
    stats = Remote(server.url, MODEL).play(trace, RunSettings())
    assert stats.lateness_s["mean"] is not None
    assert lateness_s <= stats.lateness_s["mean"] < lateness_s + 2.0


def test_figures_are_not_a_policys_if_it_raised_or_calls_of_its_run_failed() -> None:
    def stats(errors: list[str], failures: list[str]) -> LiveStats:
        return LiveStats(0.0, 1.0, 2, 6, 9, {}, {}, [], errors, failed_calls=len(failures), failures=failures)

    assert stats([], []).failed is None
    assert stats(["it broke"], []).failed == "it broke; the rest of the run was played without it"
    assert stats([], ["no answer"]).failed == "1 call failed, and what came behind was not played: no answer"
    assert stats(["it broke"], ["no answer"]).record()["failed"] == stats(["it broke"], []).failed


def test_a_late_client_is_said_in_words(
    server: MadeUpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calls reach the server half a second after they were due, and take it next to nothing."""

    def later() -> float:
        return MadeUpServer.now_s(server) + 0.5

    server.now_s = later  # type: ignore[method-assign]
    told = ["--connect", server.url, "--model", MODEL, "--policy", "vllm", "--json", str(tmp_path / "r.json")]
    _, _, err = command(str(written(tmp_path, CHAT, AGENT)), *told, capsys=capsys)
    assert "warning: vllm: calls came to the engine " in err
    (run,) = json.loads((tmp_path / "r.json").read_text())["runs"]
    late_s, took_s = run["lateness_s"]["mean"], run["call_latency_s"]["mean"]
    assert f"{1000 * late_s:,.1f} ms after they were due" in err
    assert f"{1000 * took_s:,.1f} ms that a call took" in err


def test_vllms_counters_and_the_facts_are_compared(server: MadeUpServer, trace: list[Application]) -> None:
    tokens = sum(call.prompt_tokens for application in trace for call in application.calls)
    stats = Remote(server.url, MODEL).play(trace, RunSettings())
    assert stats.disagreements == []
    assert stats.counters["vllm"] == stats.counters["facts"]
    assert stats.counters["facts"]["prompt_tokens"] == tokens

    server.unseen_tokens = 1
    stats = Remote(server.url, MODEL).play(trace, RunSettings())
    assert [line.partition(":")[0] for line in stats.disagreements] == ["prompt_tokens"]

    server.published = False
    stats = Remote(server.url, MODEL).play(trace, RunSettings())
    assert set(stats.counters) == {"facts"}
    assert not stats.disagreements


def test_several_runs_follow_each_other(server: MadeUpServer, trace: list[Application]) -> None:
    with Remote(server.url + "/v1/", MODEL) as remote:
        for policy in ("vllm", "tokencake"):
            assert remote.play(trace, RunSettings(policy=policy)).calls == 6
    assert [what["policy"] for kind, what in server.log if kind == "run"] == ["vllm", "tokencake"]
    assert (remote.version, remote.limits.gpu_blocks, remote.info()["model"]) == ("0.32.0", 1000, MODEL)


def test_the_api_key_is_taken_from_the_environment(server: MadeUpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    Remote(server.url, MODEL)
    assert server.keys == {"Bearer secret"}  # it begins no run


def test_progress_counts_applications(server: MadeUpServer, trace: list[Application]) -> None:
    seen: list[int] = []
    Remote(server.url, MODEL).play(trace, RunSettings(), progress=lambda done, at_s: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] in (1, 2)  # the last one ends after it was told last


# -- chat


def test_in_a_chat_prompts_are_messages_and_answers_stay_as_they_are(
    server: MadeUpServer, trace: list[Application]
) -> None:
    stats = Remote(server.url, MODEL, chat=True).play(trace, RunSettings())
    assert stats.calls == 6
    chats = {call["call"]: call["messages"] for call in server.calls}
    (asked,) = chats["fix/plan"]
    assert asked["role"] == "user"
    assert len(asked["content"].split()) == 65
    edit = chats["fix/edit"]
    assert [message["role"] for message in edit] == ["user", "assistant", "user"]
    assert edit[0] == asked
    assert len(edit[1]["content"].split()) == 12
    assert chats["fix/look"] == [edit[1]]
    assert asked["content"].split()[:40] == chats["chat/c"][0]["content"].split()
    finish = chats["fix/finish"]
    assert [message["role"] for message in finish] == ["user", "assistant", "user", "assistant", "user"]
    assert finish[:3] == edit
    half = finish[3]["content"]  # 4 of the 8 tokens that `edit` answered
    assert len(half) in (len(" ".join(["w00"] * 8)) // 2, len(" ".join(["w0"] * 8)) // 2)


# -- servers that are not what they have to be


def problem(server: MadeUpServer) -> str:
    """What the user is told, in one line."""
    with pytest.raises(EngineError) as caught:
        Remote(server.url, MODEL)
    assert str(caught.value).startswith(server.url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_server_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokencake.live.client.remote.server.PAUSES_S", (0.01,))
    with made_up_server() as server:
        pass
    assert "no answer from the server" in problem(server)


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "", "ftp://x", "http://", "http://[::1", "http://[::1]:99999", "http://x:port", "http://a b", "http://x\0",
     "http://\u202ex\n", "http://x/?a=b", "http://x/#y", "http://user:secret@x", "http:///x", "x" * 10_000],
)  # fmt: skip
def test_something_that_is_no_address(url: str) -> None:
    with pytest.raises(EngineError, match="expected the address of a server, such as http://localhost:8000") as caught:
        Remote(url, MODEL)
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_server_without_the_plugin(server: MadeUpServer) -> None:
    server.before = lambda path, body: (404, {"detail": "Not Found"}) if "tokencake" in path else None
    assert "has no routes of Tokencake" in problem(server)


def test_something_else_that_speaks_http(server: MadeUpServer) -> None:
    server.before = lambda path, body: (200, "<html>hello</html>")
    assert "expected the answer of a vLLM server" in problem(server)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tokencake": "0.0.1"}, "runs tokencake 0.0.1, but here is "),
        ({"vllm": "0.40.1"}, "vLLM 0.40.1 is not supported: expected vllm>=0.26,<0.34"),
        ({"tokencake": "x" * 10_000}, "runs tokencake xxx"),
        ({"vllm": "0." + "9" * 5000}, "info: vllm: expected 1 to 200 printable characters, got "),
        ({"vllm": "0." + "9" * 50}, "is not supported: expected vllm>=0.26,<0.34"),
        ({"vocabulary": None}, "info: vocabulary: expected a whole number from 2 to 2147483647, got null"),
        ({"vocabulary": 1}, "info: vocabulary: expected a whole number from 2 to 2147483647, got 1"),
        ({"vocabulary": 2**70}, "info: vocabulary: expected a whole number from 2 to 2147483647, got "),
        ({"block_tokens": 0}, "info: block_tokens: expected a whole number from 1 to 2147483647, got 0"),
        ({"gpu_blocks": "x" * 10_000}, "info: gpu_blocks: expected a whole number from 1 to 2147483647, got "),
    ],
)
def test_a_server_that_does_not_fit(server: MadeUpServer, wrong: dict[str, object], said: str) -> None:
    server.info |= wrong
    assert said in problem(server)
    assert len(problem(server)) < 1000


def test_a_server_with_other_models(server: MadeUpServer) -> None:
    server.served = ["a", "b"]
    assert f"model {MODEL!r} is not served: expected one of a, b" in problem(server)


def test_a_server_that_wants_another_key(server: MadeUpServer) -> None:
    server.before = lambda path, body: (401, {"error": "unauthorized"})
    assert "refuses the API key in OPENAI_API_KEY: unauthorized" in problem(server)


def test_a_server_whose_engine_is_not_ours(server: MadeUpServer) -> None:
    server.before = lambda path, body: (409, {"error": "the engine does not run Tokencake's scheduler"})
    assert "the engine does not run Tokencake's scheduler" in problem(server)


def test_a_trace_longer_than_the_models_context(server: MadeUpServer, trace: list[Application]) -> None:
    server.info["max_context_tokens"] = 100
    with pytest.raises(
        EngineError, match="call 'fix/edit': 105 tokens of prompt and answer, but the model's context is 100"
    ):
        Remote(server.url, MODEL).play(trace, RunSettings())
    assert "end" in server.places()  # the run that had begun


def test_a_policy_that_the_server_does_not_know(server: MadeUpServer, trace: list[Application]) -> None:
    server.before = lambda path, body: (400, {"error": "no policy 'x'"}) if path.endswith("/run") else None
    with pytest.raises(EngineError, match="run: no policy 'x'"):
        Remote(server.url, MODEL).play(trace, RunSettings(policy="x"))


# -- answers that no server of ours gives: one line says which, and nothing is measured by them

LINE = '{"fact":"AppStarted","at_s":0.1,"app":"a"}'


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        ("/tokencake/facts", {"lines": [7], "next": 1, "under_way": True}, r"facts: lines\[0\]: expected a fact"),
        (
            "/tokencake/facts",
            {"lines": ["\ud800"], "next": 1, "under_way": True},
            r"facts: lines\[0\]: expected a fact",
        ),
        ("/tokencake/facts", {"lines": [], "next": 9, "under_way": True}, "facts: next: expected 0, got 9"),
        ("/tokencake/facts", {"lines": [LINE], "next": 0, "under_way": True}, "facts: next: expected 1, got 0"),
        (
            "/tokencake/facts",
            {"lines": [LINE], "next": True, "under_way": True},
            "facts: next: expected a whole number",
        ),
        ("/tokencake/facts", {"lines": [], "next": 0, "under_way": "no"}, "facts: under_way: expected true or false"),
        ("/tokencake/facts", {"lines": [], "next": 0, "under_way": True}, "run has been ended, but the server says"),
        (
            "/tokencake/facts",
            {"lines": [], "next": 0, "under_way": True, "stalled": "yes"},
            'facts: stalled: expected an object, got "yes"',
        ),
        (
            "/tokencake/facts",
            {"lines": [], "next": 0, "under_way": True, "stalled": {"said": "a call waits", "after_s": float("nan")}},
            "facts: stalled.after_s: expected seconds, at least 0",
        ),
        (
            "/tokencake/facts",
            {"lines": [], "next": 0, "under_way": True, "stalled": {"said": 7, "after_s": 1}},
            "facts: stalled.said: expected text",
        ),
        ("/tokencake/end", {"policy_s": "x"}, "end: policy_s: expected a number"),
        ("/tokencake/end", {"policy_s": float("nan")}, "end: policy_s: expected a number"),
        ("/tokencake/end", {"errors": 7}, "end: errors: expected a list, got 7"),
        (
            "/metrics",
            "vllm:prompt_tokens_total NaN\n",
            'metrics: vllm:prompt_tokens_total: expected a number, got "NaN"',
        ),
        ("/metrics", "vllm:prompt_tokens_total x\n", 'metrics: vllm:prompt_tokens_total: expected a number, got "x"'),
    ],
)
def test_an_answer_that_means_nothing(
    server: MadeUpServer, trace: list[Application], path: str, answer: object, said: str
) -> None:
    server.before = lambda asked, body: (200, answer) if asked == path else None
    with pytest.raises((EngineError, RunError), match=said):
        Remote(server.url, MODEL).play(trace, RunSettings())


def test_what_calls_itself_json_and_is_none(server: MadeUpServer, trace: list[Application]) -> None:
    for path in ("/tokencake/info", "/v1/models", "/tokencake/events"):  # 204: an answer without a body
        server.before = lambda asked, body, path=path: (204, "") if asked == path else None  # type: ignore[misc]
        with pytest.raises(
            EngineError, match=r"expected .* of a vLLM server, got something else|expected a list of models"
        ):
            Remote(server.url, MODEL).play(trace, RunSettings())


def test_token_ids_that_are_none_cost_the_application(server: MadeUpServer, trace: list[Application]) -> None:
    for wrong in ("x", None, -1, 2**70, [1]):
        answer = {"choices": [{"token_ids": [wrong] * 9}]}
        server.before = lambda path, body, answer=answer: (  # type: ignore[misc]
            (200, answer) if path == "/v1/completions" and body["max_tokens"] == 9 else None
        )
        stats = Remote(server.url, MODEL).play(trace, RunSettings())
        assert (stats.failed_calls, stats.applications) == (1, 1)
        assert "call 'chat/c': token_ids[0]: expected the id of a token, got " in stats.failures[0]


def test_what_a_server_says_is_cut(server: MadeUpServer) -> None:
    server.before = lambda path, body: (400, {"error": "x" * 100_000})
    assert len(problem(server)) < 1000
    server.before = lambda path, body: None
    server.served = ["m" * 100] * 1000
    assert len(problem(server)) < 1000


def test_half_a_character_in_an_answer_does_not_end_a_chat(server: MadeUpServer, trace: list[Application]) -> None:
    answer = {"choices": [{"message": {"content": "half \ud800"}}]}
    server.before = lambda path, body: (200, answer) if path == "/v1/chat/completions" else None
    assert Remote(server.url, MODEL, chat=True).play(trace, RunSettings()).failed_calls == 0


# -- runs that fail


def test_a_server_that_dies_fails_the_run_and_what_was_measured_is_there(
    server: MadeUpServer, trace: list[Application], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokencake.live.client.remote.remote.FACTS_EVERY_S", 0.01)
    monkeypatch.setattr("tokencake.live.client.remote.server.PAUSES_S", (0.01,))
    journal: list[Any] = []
    dead = threading.Event()

    def die_at_edit(path: str, body: Any) -> tuple[int, object] | None:
        if path == "/v1/completions" and '"call": "edit"' in body["vllm_xargs"]["tokencake"]:
            while server.fetched < len(server.records):
                time.sleep(0.002)
            dead.set()
        return (0, None) if dead.is_set() else None

    server.before = die_at_edit
    with pytest.raises(RunError, match="no answer from the server"):
        Remote(server.url, MODEL).play(trace, RunSettings(), journal=journal.append)
    finished = {record.call for record in journal if isinstance(record, e.CallFinished)}
    assert finished == {"chat/c", "fix/plan", "fix/look", "fix/read"}


@pytest.mark.parametrize("status", [500, 400, 0])
def test_a_call_that_fails_costs_its_application_and_not_the_run(
    server: MadeUpServer, trace: list[Application], status: int
) -> None:
    def refuse(path: str, body: Any) -> tuple[int, object] | None:
        wrong = path == "/v1/completions" and '"call": "look"' in body["vllm_xargs"]["tokencake"]
        return (status, {"error": {"message": "engine\n died"}}) if wrong else None

    server.before = refuse
    stats = Remote(server.url, MODEL).play(trace, RunSettings())
    assert (stats.failed_calls, stats.applications, stats.calls) == (1, 1, 3)  # of `fix` `plan` and `read` were served
    (failure,) = stats.failures
    assert failure.startswith(f"{server.url}: call 'fix/look': ")
    assert {call["call"] for call in server.calls} == {"chat/c", "fix/plan", "fix/read"}
    ended = [what["app"] for kind, what in server.log if kind == "app_finished"]
    assert ended == ["chat", "fix"]  # the server is told: nobody comes back
    assert server.log[-1][0] == "end"


def test_an_application_that_was_given_up_did_not_finish_for_who_measures() -> None:
    taken: list[Any] = []
    facts = _Facts([taken.append], None)
    facts.given_up.add("a")
    for fact in (e.AppFinished(1.0, "a"), e.AppFinished(2.0, "b")):
        facts._take(fact)
    assert taken == [e.AppFinished(2.0, "b")]


def test_an_answer_of_another_length_is_none(server: MadeUpServer, trace: list[Application]) -> None:
    server.answer_tokens_short = 1
    stats = Remote(server.url, MODEL).play(trace, RunSettings())
    assert (stats.failed_calls, stats.calls) == (2, 0)
    assert f"{server.url}: call 'chat/c': expected 9 token ids, got 8 token ids" in stats.failures


@pytest.mark.parametrize("status", [500, 0], ids=["fails", "hangs up"])
@pytest.mark.parametrize("path", ["/tokencake/info", "/v1/models", "/metrics", "/tokencake/run", "/tokencake/events",
                                  "/tokencake/facts", "/tokencake/end"])  # fmt: skip
def test_a_question_that_is_not_answered_is_asked_again(
    server: MadeUpServer, trace: list[Application], monkeypatch: pytest.MonkeyPatch, path: str, status: int
) -> None:
    monkeypatch.setattr("tokencake.live.client.remote.server.PAUSES_S", (0.01, 0.01))
    left = [status] * 2
    server.before = lambda asked, body: (left.pop(), {"error": "not now"}) if asked == path and left else None
    stats = Remote(server.url, MODEL).play(trace, RunSettings())
    assert (stats.calls, stats.failed_calls, left) == (6, 0, [])
    assert stats.asked_again == (0 if path in ("/tokencake/info", "/v1/models") else 2)
    assert len(server.runs) == 1


def test_a_server_that_answers_nothing_is_not_asked_for_ever(
    server: MadeUpServer, trace: list[Application], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokencake.live.client.remote.server.PAUSES_S", (0.01, 0.01))
    server.before = lambda path, body: (500, {"error": "dead"}) if path == "/tokencake/facts" else None
    with pytest.raises(RunError, match=r"facts: the server failed: dead \(asked 3 times in 0.02 s\)"):
        Remote(server.url, MODEL).play(trace, RunSettings())


def test_a_server_that_is_busy_is_asked_until_it_is_not(
    server: MadeUpServer, trace: list[Application], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokencake.live.client.remote.server.PAUSES_S", (0.01, 0.01))
    busy = (423, {"error": "the engine serves others: expected an idle one"})
    left = [busy] * 4
    server.before = lambda path, body: left.pop() if path == "/tokencake/run" and left else None
    assert Remote(server.url, MODEL).play(trace, RunSettings()).calls == 6

    monkeypatch.setattr("tokencake.live.client.remote.server.BUSY_S", 0.02)
    server.before = lambda path, body: busy if path == "/tokencake/run" else None
    with pytest.raises(EngineError, match="run: the engine serves others: expected an idle one"):
        Remote(server.url, MODEL).play(trace, RunSettings())


def test_a_run_that_the_server_ended_fails(
    server: MadeUpServer, trace: list[Application], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokencake.live.client.remote.remote.FACTS_EVERY_S", 0.01)

    def end(path: str, body: Any) -> None:
        server.under_way = False

    server.before = end
    with pytest.raises(RunError, match="the server has ended the run"):
        Remote(server.url, MODEL).play(trace, RunSettings())


WAITS = "call 'fix/read' waits, and nothing was computed or copied for 60 s: it needs 8 blocks, and 5 are free"


def test_an_engine_that_has_stalled_ends_the_run_and_what_was_measured_until_then_is_kept(
    server: MadeUpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It answers all questions but one call."""
    monkeypatch.setattr("tokencake.live.client.remote.remote.FACTS_EVERY_S", 0.01)
    ended = threading.Event()

    def stall(path: str, body: Any) -> tuple[int, object] | None:
        if path == "/v1/completions" and '"call": "read"' in body["vllm_xargs"]["tokencake"]:
            server.stalled = {"said": WAITS, "after_s": 0.3}
            assert ended.wait(20)
            return 0, None
        if path == "/tokencake/end":
            ended.set()
        return None

    server.before = stall
    report, events = tmp_path / "r.json", tmp_path / "events"
    told = ["--connect", server.url, "--model", MODEL, "--policy", "vllm", "--json", str(report)]
    code, out, err = command(str(written(tmp_path, CHAT, AGENT)), *told, "--events", str(events), capsys=capsys)

    assert (code, err.splitlines()[-1]) == (1, f"error: {server.url}: {WAITS}")
    assert "end" in server.places()
    found = json.loads(report.read_text())
    assert (found["runs"], found["partial"][0]["partial"]) == ([], f"{server.url}: {WAITS}")
    assert found["partial"][0]["metrics"]["calls"] == 3  # of `chat`, `plan` and `look`
    assert out.splitlines()[-1].startswith("vllm ended after ")
    assert [path.name for path in events.iterdir()] == ["1-vllm.jsonl.partial"]


def test_an_engine_that_waits_for_the_client_has_not_stalled(
    server: MadeUpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may say so while a tool runs: what the call waits for may come with that."""
    monkeypatch.setattr("tokencake.live.client.remote.remote.FACTS_EVERY_S", 0.01)
    server.stalled = {"said": WAITS, "after_s": 0.5}
    tool = {"kind": "web", "duration_s": 1.2, "result": 9}
    calls = [
        {"id": "one", "prompt": [["task", 10]], "output": 3, "tools": [tool]},
        {"id": "two", "after": ["one"], "prompt": [["task", 20]], "output": 3},
    ]
    assert Remote(server.url, MODEL).play(applications(tmp_path, {**AGENT, "calls": calls}), RunSettings()).calls == 2


def test_many_events_are_sent_in_messages_that_a_server_takes() -> None:
    events = [{"event": "app_started", "app": "ä" * 200 + str(at)} for at in range(2000)]
    batches = list(_batches(events))
    assert [event for batch in batches for event in batch] == events
    assert len(batches) == 5
    assert all(len(json.dumps({"events": batch})) < 2**20 for batch in batches)


# -- keys, certificates, proxies


def test_the_control_token_opens_the_control_routes_and_nothing_else(
    server: MadeUpServer, trace: list[Application], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "users")
    with_key: dict[str, set[str]] = {}
    answer = server.answer

    def noting(path: str, query: Any, body: Any, headers: Any) -> Any:
        with_key.setdefault(path, set()).add(headers["Authorization"].removeprefix("Bearer "))
        return answer(path, query, body, headers)

    server.answer = noting  # type: ignore[method-assign]
    Remote(server.url, MODEL).play(trace, RunSettings())
    control = {path for path, keys in with_key.items() if keys == {TOKEN}}
    assert control == {"/tokencake/run", "/tokencake/facts", "/tokencake/end"}
    assert all(keys == {"users"} for path, keys in with_key.items() if path not in control)

    monkeypatch.setenv("TOKENCAKE_CONTROL_TOKEN", "wrong")
    with pytest.raises(EngineError, match="run: the server refuses the control token in TOKENCAKE_CONTROL_TOKEN"):
        Remote(server.url, MODEL).play(trace, RunSettings())
    assert Remote(server.url, MODEL, control_token=TOKEN).play(trace, RunSettings()).calls == 6
    monkeypatch.delenv("TOKENCAKE_CONTROL_TOKEN")
    with pytest.raises(EngineError, match="expected the server's control token in TOKENCAKE_CONTROL_TOKEN"):
        Remote(server.url, MODEL).play(trace, RunSettings())


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "TOKENCAKE_CONTROL_TOKEN"])
@pytest.mark.parametrize("value", ["two words", "one\nline", "clé", "x" * 5000])
def test_a_key_that_no_header_can_carry(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(EngineError, match=f"{variable}: expected a key of 1 to 4096 ASCII letters") as caught:
        Remote("http://127.0.0.1:1", MODEL)
    assert value not in str(caught.value)


@pytest.mark.parametrize("file", ["/nonexistent/ca.pem", __file__, "/"])
def test_certificates_that_are_none(monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", file)
    with pytest.raises(EngineError, match=f"https://localhost:1: SSL_CERT_FILE={file}: cannot be read as certificates"):
        Remote("https://localhost:1", MODEL)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense"])
def test_no_proxy_leads_to_this_machine(
    server: MadeUpServer, trace: list[Application], monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    assert Remote(server.url, MODEL).play(trace, RunSettings()).calls == 6


@pytest.mark.parametrize(
    "proxy", ["http://user:secret@127.0.0.1:9", "socks5://127.0.0.1:9", "ftp://x", "nonsense", "http://[::"]
)
@pytest.mark.parametrize("variable", ["ALL_PROXY", "HTTP_PROXY"])
def test_a_proxy_that_leads_nowhere_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, proxy: str) -> None:
    monkeypatch.setattr("tokencake.live.client.remote.server.PAUSES_S", ())
    monkeypatch.setenv(variable, proxy)
    with pytest.raises(EngineError, match=f"(through the proxy of|opened as) {variable}(: | says: )") as caught:
        Remote("http://server.invalid:8000", MODEL)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interrupt_gives_up_the_calls_under_way_and_ends_the_run(
    server: MadeUpServer, trace: list[Application]
) -> None:
    given_up = threading.Event()

    def hang(path: str, body: Any) -> tuple[int, object] | None:
        if path == "/v1/completions" and '"call": "plan"' in body["vllm_xargs"]["tokencake"]:
            os.kill(os.getpid(), signal.SIGINT)
            assert given_up.wait(20)
            return 0, None
        if path == "/tokencake/end" and not given_up.is_set():
            server.records += [e.AppStarted(0.0, "fix"), e.AppFinished(1.0, "fix")]  # as a server ends what is left
            given_up.set()
        return None

    server.before = hang
    journal: list[Any] = []
    metrics = Metrics()
    with pytest.raises(KeyboardInterrupt):
        Remote(server.url, MODEL).play(trace, RunSettings(), [metrics.add], journal=journal.append)
    assert given_up.is_set()
    assert isinstance(journal[-1], e.Occupied)
    assert e.AppFinished(1.0, "fix") in journal
    assert metrics.result()["applications"] == 0  # for who measures it did not finish
    assert not any(call["call"] == "fix/look" for call in server.calls)


# -- the command


def command(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Its exit code, and what it wrote."""
    code = run(["live", *arguments])
    return code, *capsys.readouterr()


def test_the_command_reports_a_servers_runs(
    server: MadeUpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, report = str(written(tmp_path, CHAT, AGENT)), tmp_path / "report.json"
    told = [
        "--connect",
        server.url,
        "--model",
        MODEL,
        "--policy",
        "vllm",
        "--policy",
        "tokencake",
        "--time-scale",
        "0.5",
    ]
    code, out, err = command(path, *told, "--json", str(report), "--events", str(tmp_path), capsys=capsys)
    assert code == 1  # the made-up server's policies raise
    assert "error: a policy raised; the rest of its run was played without it" in err
    assert "tokencake: no verdict against vllm" not in out  # it failed itself
    assert out.count(" failed, and its figures are left out: a policy raised; the rest of the run was played wi") == 2
    assert "6 calls of 2 applications on made-up" in out
    found = json.loads(report.read_text())
    assert (found["engine"], found["engine_version"], found["machine"]["url"]) == ("vllm", "0.32.0", server.url)
    assert [run["lateness_s"]["max"] > 0 for run in found["runs"]] == [True, True]
    assert {path.name for path in tmp_path.glob("*-*")} == {"1-vllm.jsonl", "2-tokencake.jsonl"}
    declared = [
        tool["declared_s"] for call in server.calls for tool in told_of(call).get("tools", []) if "declared_s" in tool
    ]
    assert declared == [0.25, 0.25]  # half of what the trace says, in each run


def test_the_command_publishes_a_run_of_which_every_call_failed(
    server: MadeUpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.before = lambda path, body: (503, {"error": {"message": "no"}}) if path == "/v1/completions" else None
    report = tmp_path / "report.json"
    told = ["--connect", server.url, "--model", MODEL, "--policy", "vllm", "--json", str(report)]
    code, _, err = command(str(written(tmp_path, CHAT, AGENT)), *told, capsys=capsys)
    assert code == 1
    assert "error: vllm: 2 calls failed, and what came behind: " in err
    (run,) = json.loads(report.read_text())["runs"]
    assert (run["failed_calls"], run["metrics"]["calls"], run["metrics"]["applications"]) == (2, 0, 0)


def test_the_command_publishes_a_run_with_failed_calls_and_says_how_many(
    server: MadeUpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENCAKE_CONTROL_TOKEN")
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    report = tmp_path / "report.json"

    def refuse(path: str, body: Any) -> tuple[int, object] | None:
        wrong = path == "/v1/completions" and '"call": "plan"' in body["vllm_xargs"]["tokencake"]
        return (500, {"error": {"message": "out of memory"}}) if wrong else None

    server.before = refuse
    told = ["--connect", server.url, "--model", MODEL, "--policy", "vllm", "--control-token-file", str(token)]
    path = str(written(tmp_path, CHAT, AGENT))
    code, _, err = command(path, *told, "--json", str(report), capsys=capsys)
    assert code == 1
    assert "error: vllm: 1 call failed, and what came behind: " in err
    assert "call 'fix/plan': the server failed: out of memory" in err
    (run,) = json.loads(report.read_text())["runs"]
    assert (run["failed_calls"], len(run["failures"]), run["metrics"]["calls"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--control-token-file", "/nonexistent"], "--control-token-file /nonexistent: cannot be read: No such file"),
        (["--control"], "--control: expected --print-serve-args, too"),
        (["--policy", "mine.py:Mine"], "policy mine.py:Mine: --connect: a server takes policies that it knows by name"),
        (["--gpu-blocks", "7"], "--connect: the server's engine is up already: --gpu-blocks cannot be asked for"),
        (["--model", "another"], "model 'another' is not served: expected one of other, made-up"),
    ],
)
def test_what_cannot_be_asked_of_a_server(
    server: MadeUpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    path = str(written(tmp_path, CHAT))
    code, out, err = command(path, "--connect", server.url, "--model", MODEL, *arguments, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert server.log == []


def told_of(call: dict[str, Any]) -> dict[str, Any]:
    """What a call's metadata says."""
    said: dict[str, Any] = json.loads(call["vllm_xargs"]["tokencake"])
    return said
