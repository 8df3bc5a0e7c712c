"""What clients say of their applications and tools beside their requests, looked at before anybody acts on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ....traces.errors import EngineError
from ....traces.files.fields import WrongField, items, members, name, seconds, shown, text

KINDS = ("app_started", "app_finished", "tool_started", "tool_returned")
_FIELDS = frozenset({"event", "app", "agent", "call", "at_s"})


class ClientEvent(NamedTuple):
    """An event. `agent` is "" where it is about an application."""

    kind: str  # one of KINDS
    app: str
    agent: str
    call: str
    at_s: float | None  # since the run began; None: now


def events_from_body(body: Mapping[str, Any]) -> list[ClientEvent]:
    """The events of `{"events": [{"event": …}, …]}`. Raises `EngineError` that names the field."""
    try:
        said = items(members(body, frozenset({"events"}), ("events",))["events"], "events")
    except WrongField:
        raise EngineError('expected {"events": [{"event": …}, …]}') from None
    return [event_from_record(event) for event in said]


def event_from_record(said: object) -> ClientEvent:
    """An event from plain data. Raises `EngineError` that names the field."""
    try:
        known = members(said, _FIELDS, ("event", "app"))
        kind = known["event"]
        if kind not in KINDS:
            raise WrongField("event", f"expected {', '.join(KINDS[:-1])} or {KINDS[-1]}, got {shown(kind)}")
        at_s = known.get("at_s")
        return ClientEvent(
            str(kind),
            name(known["app"], "app"),
            name(known["agent"], "agent") if "agent" in known or str(kind).startswith("tool") else "",
            text(known["call"], "call") if known.get("call", "") != "" else "",
            None if at_s is None else seconds(at_s, "at_s"),
        )
    except WrongField as wrong:
        raise EngineError(f"event: {wrong}") from None
    except KeyError as missing:
        raise EngineError(f"event: {missing.args[0]}: expected the name of an agent, got none") from None
