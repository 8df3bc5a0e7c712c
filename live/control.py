"""The adapter for other processes: operations with plain data, which vLLM's utility calls and our HTTP routes carry."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..policies.controller import Sink
from ..policies.registry import load_policy
from ..traces.errors import EngineError, TokencakeError
from ..traces.events_io import EventsWriter, encode
from .adapter import Adapter
from .settings import RunSettings, from_record

MOST_LINES = 10_000  # facts that one answer carries


class Control:
    """Begins and ends runs for clients elsewhere, and keeps what they ask for.

    A server has a run of its own, from its start on. It gives way to a client's run, and goes on, from the beginning,
    when that has ended.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._own: RunSettings | None = None
        self._writer: EventsWriter | None = None
        self._lines: list[str] = []

    def handle(self, op: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Do one of `info`, `begin`, `end`, `tell`, `facts`. What is refused comes back as `{"error": one line}`."""
        operations = {
            "info": self._info,
            "begin": self._begin,
            "end": self._end,
            "tell": self._tell,
            "facts": self._facts,
        }
        try:
            if op not in operations:
                raise EngineError(f"unknown operation {op!r}: expected one of {', '.join(operations)}")
            if op != "begin":
                self._go_on()
            return operations[op](payload) or {}
        except TokencakeError as error:
            return {"error": " ".join(str(error).split())}

    def begin_own(self, settings: RunSettings) -> None:
        """Start the server's own run."""
        self._own = settings
        self.begin(settings)

    def begin(self, settings: RunSettings) -> None:
        """Start a run whose facts are kept, or written down, here."""
        journal: Sink | None = None
        if settings.keep_facts:
            journal = self._keep
        writer = EventsWriter(settings.events) if settings.events is not None else None
        if writer is not None:
            writer.__enter__()
            journal = writer.add if journal is None else self._keep_and_write
        try:
            self._writer = writer
            self._adapter.begin(settings, journal=journal)
        except BaseException as error:
            if writer is not None:
                writer.__exit__(type(error), error, None)
            self._writer = None
            raise

    def _begin(self, payload: Mapping[str, Any]) -> None:
        settings = from_record(payload)
        load_policy(settings.policy, seed=settings.seed)  # what is refused leaves the server's own run alone
        if self._adapter.settings is not None and self._adapter.settings is self._own:
            if not self._adapter.at_rest:
                raise EngineError("the engine serves others: expected an idle one")
            self._close()
        kept, self._lines = self._lines, []
        try:
            self.begin(settings)
        except TokencakeError:  # another client's run is under way, or this one cannot be
            self._lines = kept
            self._go_on()
            raise

    def _go_on(self) -> None:
        """The server's own run begins anew when no other is under way, and the engine is at rest."""
        if self._own is not None and self._adapter.settings is None:
            with suppress(EngineError):
                self.begin(self._own)

    def _info(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._adapter.info(), "errors": list(self._adapter.errors)}

    def _end(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        if self._adapter.settings is not None and self._adapter.settings is self._own:
            raise EngineError("no run of a client is under way")
        said = {"policy_s": self._adapter.policy_s, "errors": list(self._adapter.errors)}
        self._close()
        self._go_on()
        return said

    def _close(self) -> None:
        """End the run under way, and what it writes."""
        self._adapter.end()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.__exit__(None, None, None)

    def _tell(self, payload: Mapping[str, Any]) -> None:
        events = payload.get("events")
        if not isinstance(events, list) or not all(isinstance(event, Mapping) for event in events):
            raise EngineError("tell: events: expected a list of objects")
        for event in events:
            self._adapter.tell(event)

    def _facts(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        first, most = payload.get("from", 0), payload.get("limit", MOST_LINES)
        if not isinstance(first, int) or not isinstance(most, int) or first < 0 or most < 1:
            raise EngineError("facts: from, limit: expected whole numbers, at least 0 and 1")
        lines = self._lines[first : first + min(most, MOST_LINES)]
        return {"lines": lines, "next": first + len(lines)}

    def _keep(self, record: Any) -> None:
        self._lines.append(encode(record))

    def _keep_and_write(self, record: Any) -> None:
        assert self._writer is not None
        self._keep(record)
        self._writer.add(record)
