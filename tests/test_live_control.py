"""Whatever is asked of a server, and whatever goes wrong with it: afterwards it has its own run, or a client's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencake.live.adapter import Adapter
from tokencake.live.control import Control
from tokencake.live.kept_facts import KeptFacts
from tokencake.live.settings import RunSettings
from tokencake.policies.interface import Policy
from tokencake.policies.registry import load_policy
from tokencake.traces import events as e
from tokencake.traces.errors import EngineError

NAMES = ("r" * 32, "s" * 40)
OWN = RunSettings(policy="tokencake", app_timeout_s=10.0)

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


class Engine:
    """As much of vLLM's scheduler as control calls look at."""

    def __init__(self) -> None:
        self.requests: dict[str, object] = {}
        self.emptied = True
        pool = SimpleNamespace(num_gpu_blocks=11, get_num_free_blocks=lambda: 10, enable_kv_cache_events=False)
        self.kv_cache_manager = SimpleNamespace(block_pool=pool, reset_prefix_cache=lambda: self.emptied)
        self.now_s = 0.0
        self.adapter = Adapter(self, 16, 10, {"block_bytes": 1})
        self.adapter._clock = lambda: self.now_s
        self.adapter.load_policy = loaded
        self.control = Control(self.adapter, 60.0, lambda: self.now_s)
        self.control.begin_own(OWN)

    def becomes(self, what: str) -> None:
        if what == "busy":
            self.requests["one"] = object()
        elif what == "idle":
            self.requests.clear()
        elif what == "time passes":
            self.now_s += 45.0
        elif what == "step":
            self.control.look()
            self.adapter.boundary()
        else:
            self.emptied = what == "blocks are free"


def loaded(spec: str, *, seed: int, registered_only: bool = False) -> Policy:
    if spec == "raises":
        raise MemoryError("no\nroom")
    if spec == "exits":
        raise SystemExit(0)
    return load_policy(spec, seed=seed, registered_only=registered_only)


@given(calls=st.lists(CALLS | WORLD, max_size=30))
def test_no_control_call_leaves_the_server_without_a_run(calls: Sequence[str | tuple[str, dict[str, Any]]]) -> None:
    engine = Engine()
    control, adapter = engine.control, engine.adapter
    for call in calls:
        if isinstance(call, str):
            engine.becomes(call)
        else:
            with suppress(SystemExit):  # nobody but the process itself may be asked to end
                said = control.handle(*call)
                assert said.get("error", "").isprintable()
                json.dumps(said)
        client = control._client
        assert adapter.settings is (OWN if client is None else client.settings)
        assert adapter._controller is not None


@pytest.mark.parametrize("wrong", [MemoryError("no room"), ValueError("embedded null byte"), SystemExit(0)])
def test_a_run_that_cannot_begin_gives_the_server_back(wrong: BaseException) -> None:
    """When its own run has ended already, too."""
    engine = Engine()
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
    engine = Engine()
    engine.control.handle("begin", {"run": NAMES[0], "settings": {"keep_facts": True}})
    client = engine.control._client
    assert client is not None
    client.facts.add = _raise  # type: ignore[method-assign]
    engine.adapter._controller._sinks = (_raise,)  # type: ignore[union-attr]
    assert engine.control.handle("end", {"run": NAMES[0]})["status"] == 500
    assert engine.adapter.settings is OWN
    assert engine.control.handle("info", {})["policy"] == "tokencake"


def _raise(record: object) -> None:
    raise OSError("no space left on device")


def test_a_file_of_events_that_cannot_be_written_any_more_stops_nobody(tmp_path: Any) -> None:
    engine = Engine()
    own = RunSettings(policy="vllm", events=str(tmp_path / "events.jsonl"))
    control = Control(engine.adapter, 60.0, lambda: engine.now_s)
    engine.adapter.end()
    control.begin_own(own)
    writer = control._writer
    assert writer is not None
    writer.add = _refuse  # type: ignore[method-assign]
    assert control.handle("tell", {"events": [{"event": "app_started", "app": "a"}]}) == {}
    assert control._writer is None
    assert '"AppStarted"' not in (tmp_path / "events.jsonl.partial").read_text()
    assert engine.adapter.settings is own


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
    assert kept.since(9, 1) == ([], 9)
    kept.add(e.AppStarted(5.0, "a5"))
    with pytest.raises(EngineError, match="those before 5 were fetched, and are not kept"):
        asked(kept)
