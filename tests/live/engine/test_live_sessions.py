"""Clients that never heard of us: vLLM's session id says whose a call is. Without vLLM: its requests are made up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from idle_engine import IdleEngine

from tokencake.live.engine import apps
from tokencake.live.engine.control.callers import session_app, told_of
from tokencake.live.engine.control.metadata import KEY
from tokencake.policies.interface import Status
from tokencake.policies.replay.replay import replay_file
from tokencake.policies.run_settings import SESSION_TIMEOUT_S, RunSettings
from tokencake.traces import events as e
from tokencake.traces.events import ToolHint
from tokencake.traces.format.events_file import EventsWriter


def request(name: str, session: str | None = None, said: object = None, prompt_tokens: int = 40) -> Any:
    """As vLLM 0.28 and later have it; without a session as older ones."""
    made = SimpleNamespace(
        request_id=name, arrival_time=0.0, num_prompt_tokens=prompt_tokens, max_tokens=8, num_output_tokens=8,
        num_tokens=prompt_tokens, num_computed_tokens=0, num_output_placeholders=0, num_preemptions=0, block_hashes=[],
        sampling_params=SimpleNamespace(extra_args=None if said is None else {KEY: said}),
    )  # fmt: skip
    if session is not None:
        made.session_id = session
    return made


class Serving:
    """An engine that admits a call at once, and ends it when it is told to."""

    def __init__(self, settings: RunSettings, writer: EventsWriter | None = None) -> None:
        self.engine = IdleEngine()
        self.adapter = self.engine.adapter
        self.adapter.end()
        self.facts: list[Any] = []
        self.adapter.begin(settings, [self.facts.append], None if writer is None else writer.add)

    def at(self, now_s: float) -> None:
        self.engine.now_s = now_s
        self.adapter.boundary()

    def arrives(self, made: Any) -> None:
        self.adapter.arrived(made)
        self.adapter.allocated(made, [], 0)

    def ends(self, made: Any) -> None:
        out = SimpleNamespace(request_id=made.request_id, new_token_ids=[1], finish_reason="stop")
        session = self.adapter.session
        assert session is not None
        session.calls.came({0: SimpleNamespace(outputs=[out])}, True, self.engine.now_s)

    def call(self, made: Any, from_s: float, until_s: float) -> None:
        self.at(from_s)
        self.arrives(made)
        self.at(until_s)
        self.ends(made)

    def told(self) -> list[tuple[str, float]]:
        """What was told of applications, calls and tools."""
        kinds = (e.AppStarted, e.AppFinished, e.CallArrived, e.CallFinished, e.ToolStarted, e.ToolReturned)
        return [(type(fact).__name__, fact.at_s) for fact in self.facts if isinstance(fact, kinds)]


def test_between_its_calls_a_session_is_stalled_by_a_tool_of_unknown_kind() -> None:
    serving = Serving(RunSettings(policy="tokencake"))
    serving.call(request("r1", "s1"), 1.0, 2.0)
    (app,) = [fact.app for fact in serving.facts if isinstance(fact, e.AppStarted)]
    (arrived,) = [fact.request for fact in serving.facts if isinstance(fact, e.CallArrived)]
    assert (app, arrived.agent, arrived.id) == ("session:s1", "session:s1/main", "session:s1/r1")
    assert (arrived.agent_type, arrived.tools) == ("session", (ToolHint("unknown", None),))
    serving.at(3.0)
    session = serving.adapter.session
    assert session is not None
    view = session.controller._ledger.view
    assert [(agent.id, agent.status) for agent in view.stalled.values()] == [("session:s1/main", Status.STALLED)]
    serving.call(request("r2", "s1"), 5.0, 6.0)
    assert [(what, round(at_s, 3)) for what, at_s in serving.told()] == [
        ("AppStarted", 1.0), ("CallArrived", 1.0), ("CallFinished", 2.0), ("ToolStarted", 2.0),
        ("ToolReturned", 5.0), ("CallArrived", 5.0), ("CallFinished", 6.0), ("ToolStarted", 6.0),
    ]  # fmt: skip


def test_two_calls_of_a_session_at_once_are_of_one_agent() -> None:
    serving = Serving(RunSettings())
    first, second = request("r1", "s1"), request("r2", "s1")
    serving.at(1.0)
    serving.arrives(first)
    serving.arrives(second)
    serving.ends(first)
    assert not serving.adapter.session.apps.stalled  # type: ignore[union-attr]
    serving.ends(second)
    assert [what for what, _ in serving.told()].count("ToolStarted") == 1


def test_a_session_ends_when_nothing_is_heard_of_it_and_may_come_back() -> None:
    serving = Serving(RunSettings(session_timeout_s=80.0))
    serving.call(request("r1", "s1"), 0.0, 1.0)
    serving.call(request("r2", "s2"), 50.0, 60.0)
    serving.at(80.0)
    assert [what for what, _ in serving.told()].count("AppFinished") == 0
    serving.at(91.0)  # it is looked at ten times in that long, or less
    ended = [fact for fact in serving.facts if isinstance(fact, e.AppFinished)]
    assert [(fact.app, fact.at_s) for fact in ended] == [("session:s1", 91.0)]
    serving.call(request("r3", "s1"), 95.0, 96.0)
    started = [fact.app for fact in serving.facts if isinstance(fact, e.AppStarted)]
    assert started == ["session:s1", "session:s2", "session:s1"]


def test_a_call_under_way_keeps_its_session() -> None:
    serving = Serving(RunSettings(session_timeout_s=8.0))
    long = request("r1", "s1")
    serving.at(0.0)
    serving.arrives(long)
    serving.at(100.0)
    serving.ends(long)
    serving.at(107.0)
    assert "AppFinished" not in [what for what, _ in serving.told()]
    serving.at(109.0)
    assert serving.told()[-1] == ("AppFinished", 109.0)


def test_applications_and_sessions_each_have_their_own_timeout() -> None:
    serving = Serving(RunSettings(app_timeout_s=None, session_timeout_s=8.0))
    serving.call(request("r1", said={"app": "fix", "agent": "coder"}), 0.0, 1.0)
    serving.call(request("r2", "s1"), 0.0, 1.0)
    serving.at(1000.0)
    assert [fact.app for fact in serving.facts if isinstance(fact, e.AppFinished)] == ["session:s1"]


def test_what_a_client_tells_goes_before_its_session() -> None:
    told = told_of(request("r1", "s1", {"app": "fix", "agent": "coder"}), sessions=True)
    assert told is not None
    assert (told.request.agent, told.request.tools, told.session) == ("fix/coder", (), False)


@pytest.mark.parametrize(
    ("made", "sessions"),
    [(request("r1"), True), (request("r1", ""), True), (request("r1", "s1"), False)],
    ids=["before vLLM 0.28", "none sent", "switched off"],
)
def test_without_a_session_a_request_is_nobodys(made: Any, sessions: bool) -> None:
    assert told_of(made, sessions=sessions) is None


def test_a_session_id_that_is_no_name_goes_by_its_digest() -> None:
    assert session_app("chat-7") == "session:chat-7"
    odd = ["a/b", "x" * 1000, "a\nb", "\ud800"]
    names = {session_app(session) for session in odd}
    assert len(names) == len(odd)
    assert {len(name) for name in names} == {len("session:") + 64}


def test_who_sends_a_session_a_request_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps, "MOST_AGENTS", 10)
    serving = Serving(RunSettings(policy="tokencake"))
    for number in range(50):
        serving.call(request(f"r{number}", f"s{number}"), float(number), number + 0.5)
    session = serving.adapter.session
    assert session is not None
    assert len(session.apps.by_name) == 5
    assert len(session.controller._ledger.view.agents) == 5
    assert serving.adapter.errors == []


def test_contexts_that_are_longer_than_any_cache_are_not_all_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each block a hash is kept: when there are too many, the session ends that was heard of first."""
    monkeypatch.setattr(apps, "MOST_BLOCKS", 100)
    serving = Serving(RunSettings())
    for number in range(20):
        made = request(f"r{number}", f"s{number % 10}", prompt_tokens=16 * 30)
        made.block_hashes = [b"%d.%d" % (number, at) for at in range(30)]
        serving.call(made, float(number), number + 0.5)
    session = serving.adapter.session
    assert session is not None
    assert list(session.apps.by_name) == [f"session:s{number}" for number in (6, 7, 8, 9)]
    assert sum(agent.context_blocks for agent in session.apps.agents.values()) == session.apps._known_blocks == 120
    serving.adapter.end()
    assert session.apps._known_blocks == 0


def test_a_run_of_sessions_is_recorded_and_replayed(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    with EventsWriter(events) as writer:
        serving = Serving(RunSettings(policy="tokencake", session_timeout_s=15.0), writer)
        for number in range(30):
            session = f"s{number % 4}" if number < 20 else "s9"
            serving.call(request(f"r{number}", session, prompt_tokens=40 + number), 2.0 * number, 2.0 * number + 1)
        serving.adapter.end()
    assert {fact.app for fact in serving.facts if isinstance(fact, e.AppFinished) and fact.at_s < 59.0} == {
        f"session:s{number}" for number in range(4)
    }
    _, parity = replay_file(events)
    assert parity.equal


def test_by_default_a_session_ends_after_an_hour() -> None:
    assert RunSettings().session_timeout_s == SESSION_TIMEOUT_S == 3600.0
