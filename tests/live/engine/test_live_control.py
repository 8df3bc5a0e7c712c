"""Whatever is asked of a server, and whatever goes wrong with it: afterwards it has its own run, or a client's."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from idle_engine import OWN, IdleEngine

from tokencake.live.engine.control.control import Control
from tokencake.live.engine.control.kept_facts import KeptFacts
from tokencake.live.engine.control.metadata import KEY, from_extra_args
from tokencake.policies.run_settings import RunSettings
from tokencake.traces import events as e
from tokencake.traces.errors import EngineError
from tokencake.traces.files.fields import WrongField
from tokencake.traces.format.events_file import read_events

NAMES = ("r" * 32, "s" * 40)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "run",
    "settings",
    "from",
    "limit",
    "events",
    "policy",
    "seed",
    "costs",
    "app",
    "event",
    "agent",
    "call",
    "at_s",
)
VALUES = (
    JSON
    | st.sampled_from([*NAMES, "vllm", "tokencake", "os.py:system", "a\0", "app_started", "tool_started"])
    | st.dictionaries(st.sampled_from(FIELDS), JSON | st.sampled_from(["vllm", "a", "app_started"]), max_size=4)
)
PAYLOADS = st.dictionaries(st.sampled_from(FIELDS), VALUES | st.lists(VALUES, max_size=2), max_size=4)
SENSIBLE = st.one_of(
    st.builds(
        lambda name, policy, keep: ("begin", {"run": name, "settings": {"policy": policy, "keep_facts": keep}}),
        st.sampled_from(NAMES),
        st.sampled_from(["vllm", "tokencake", "native-offload", "nonesuch", "raises", "exits"]),
        st.booleans(),
    ),
    st.builds(lambda name: ("end", {"run": name}), st.sampled_from(NAMES)),
    st.builds(lambda name, at: ("facts", {"run": name, "from": at}), st.sampled_from(NAMES), st.integers(0, 5)),
    st.builds(lambda app: ("tell", {"events": [{"event": "app_started", "app": app}]}), st.sampled_from("abc")),
    st.just(("info", {})),
)
CALLS = SENSIBLE | st.tuples(st.sampled_from(["begin", "end", "facts", "tell", "info", "x"]), PAYLOADS)
WORLD = st.sampled_from(["busy", "idle", "time passes", "blocks are held", "blocks are free", "step"])


@given(calls=st.lists(CALLS | WORLD, max_size=30))
def test_no_control_call_leaves_the_server_without_a_run(calls: Sequence[str | tuple[str, dict[str, Any]]]) -> None:
    engine = IdleEngine()
    for call in calls:
        if isinstance(call, str):
            engine.becomes(call)
        else:
            with suppress(SystemExit):  # nobody but the process itself may be asked to end
                said = engine.control.handle(*call)
                assert said.get("error", "").isprintable()
                json.dumps(said)
        engine.check()


@pytest.mark.parametrize("wrong", [MemoryError("no room"), ValueError("embedded null byte"), SystemExit(0)])
def test_a_run_that_cannot_begin_gives_the_server_back(wrong: BaseException) -> None:
    """When its own run has ended already, too."""
    engine = IdleEngine()
    begin = engine.adapter.begin

    def failing(settings: RunSettings, *arguments: Any, **more: Any) -> None:
        if settings is not OWN:
            raise wrong
        begin(settings, *arguments, **more)

    engine.adapter.begin = failing  # type: ignore[method-assign]
    said: dict[str, Any] = {}
    with suppress(SystemExit):
        said = engine.control.handle("begin", {"run": NAMES[0], "settings": {}})
    assert isinstance(wrong, SystemExit) or said["status"] == 500
    assert engine.adapter.settings is OWN


def test_a_sink_that_fails_takes_neither_the_engine_nor_its_policy() -> None:
    """As a disk that is full does, when the run that is measured ends."""
    engine = IdleEngine()
    engine.control.handle("begin", {"run": NAMES[0], "settings": {"keep_facts": True}})
    client = engine.control._client
    assert client is not None
    client.facts.add = _raise  # type: ignore[method-assign]
    engine.adapter.session.controller._sinks = (_raise,)  # type: ignore[union-attr]
    assert engine.control.handle("end", {"run": NAMES[0]})["status"] == 500
    assert engine.adapter.settings is OWN
    assert engine.control.handle("info", {})["policy"] == "tokencake"


def _raise(record: object) -> None:
    raise OSError("no space left on device")


def test_a_file_of_events_that_cannot_be_written_any_more_stops_nobody(tmp_path: Any) -> None:
    engine = IdleEngine()
    own = RunSettings(policy="vllm", events=str(tmp_path / "events.jsonl"))
    control = Control(engine.adapter, engine.watch, 60.0, lambda: engine.now_s)
    engine.adapter.end()
    control.begin_own(own)
    log = control._log
    assert log is not None
    writer = log._writer
    assert writer is not None
    writer.add = _refuse  # type: ignore[method-assign]
    assert control.handle("tell", {"events": [{"event": "app_started", "app": "a"}]}) == {}
    assert log._writer is None
    assert '"AppStarted"' not in (tmp_path / "events.jsonl.partial").read_text()
    assert engine.adapter.settings is own


def test_each_run_of_the_server_itself_has_its_events_in_a_file_of_its_own(tmp_path: Path) -> None:
    """Three: before a client's run, after it, and after the server was started again. One was broken off."""
    engine = IdleEngine()
    file = tmp_path / "events.jsonl.gz"
    own = RunSettings(policy="vllm", events=str(file))
    control = Control(engine.adapter, engine.watch, 60.0, lambda: engine.now_s)
    engine.adapter.end()
    control.begin_own(own)
    control.handle("tell", {"events": [{"event": "app_started", "app": "before"}]})
    control.handle("begin", {"run": NAMES[0], "settings": {}})
    control.handle("end", {"run": NAMES[0]})
    control.handle("tell", {"events": [{"event": "app_started", "app": "after"}]})
    written = gzip.GzipFile(tmp_path / "2-events.jsonl.gz.partial").read1().decode()
    assert written.splitlines()[-1] == '{"fact":"AppStarted","at_s":0.0,"app":"after"}'  # even if it were killed now
    control.close()
    (tmp_path / "3-events.jsonl.gz.partial").touch()  # a server that was killed left it
    control = Control(engine.adapter, engine.watch, 60.0, lambda: engine.now_s)
    control.begin_own(own)
    control.handle("tell", {"events": [{"event": "app_started", "app": "again"}]})
    control.close()

    started = {}
    for path in tmp_path.iterdir():
        records = list(read_events(path))
        assert sum(isinstance(record, e.Began) for record in records) == (path.suffix != ".partial")
        started[path.name] = [record.app for record in records if isinstance(record, e.AppStarted)]
    assert started == {
        "events.jsonl.gz": ["before"],
        "2-events.jsonl.gz": ["after"],
        "3-events.jsonl.gz.partial": [],
        "4-events.jsonl.gz": ["again"],
    }


STALLED = SimpleNamespace(running=[1], requests={})
SAYS = {"said": "nothing was computed or copied for 40 s, though 1 calls run", "after_s": 30.0}


def test_who_has_a_run_under_way_is_told_that_the_engine_has_stalled() -> None:
    engine = IdleEngine()

    def told() -> object:
        return engine.control.handle("facts", {"run": NAMES[0]})["stalled"]

    engine.watch.look(40.0, STALLED, None)  # before its run
    engine.control.handle("begin", {"run": NAMES[0], "settings": {"keep_facts": True}})
    assert told() is None
    engine.watch.look(40.0, STALLED, None)
    assert told() == SAYS
    engine.now_s = 41.0
    engine.control.handle("tell", {"events": [{"event": "app_started", "app": "a"}]})
    assert told() is None
    assert engine.watch.look(70.9, STALLED, None) is None
    assert engine.watch.look(71.0, STALLED, None) is not None


def _refuse(record: object) -> None:
    raise EngineError("events.jsonl: cannot be written: no space left on device")


@pytest.mark.parametrize("asked", [lambda kept: kept.since(2, 1), lambda kept: kept.since(0, 9)])
def test_facts_are_forgotten_once_later_ones_are_asked_for(asked: Callable[[KeptFacts], object]) -> None:
    kept = KeptFacts()
    for at in range(5):
        kept.add(e.AppStarted(float(at), f"a{at}"))
    first, following = kept.since(0, 3)
    assert (len(first), following) == (3, 3)
    assert kept.since(0, 3) == (first, 3)  # asked again: the answer was lost
    assert kept.since(3, 3)[1] == 5
    with pytest.raises(EngineError, match="from 9: expected at most 5, the next one"):
        kept.since(9, 1)  # a client that is mistaken: nothing is forgotten for it
    assert len(kept.since(3, 3)[0]) == 2
    assert kept.since(5, 1) == ([], 5)
    kept.add(e.AppStarted(5.0, "a5"))
    with pytest.raises(EngineError, match="those before 5 were fetched, and are not kept"):
        asked(kept)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ('{"agent": "a", "agent": "b"}', 'expected each field once, got "agent" twice'),
        ('{"agent": "a", "max_output": NaN}', "expected JSON, which has no NaN"),
        ('{"agent": "\ud800"}', "expected text in UTF-8"),
    ],
)
def test_metadata_that_is_no_strict_json_means_nothing(said: str, why: str) -> None:
    with pytest.raises(WrongField, match=f"^tokencake: expected an object, or JSON text of one: {why}"):
        from_extra_args({KEY: said}, "request", 10, 5)
