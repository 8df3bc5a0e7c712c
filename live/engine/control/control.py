"""The adapter for other processes: operations with plain data, which vLLM's utility calls and our HTTP routes carry."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ....policies.interface import Policy
from ....policies.run_settings import CLIENT_TIMEOUT_S, RunSettings, from_client
from ....traces.errors import EngineError, TokencakeError
from ....traces.files.fields import WrongField, shown, whole
from ..adapter import Adapter
from .client_events import events_from_body
from .events_log import EventsLog
from .kept_facts import KeptFacts
from .protocol import BUSY, checked_name, same_name
from .stall import Watch

logger = logging.getLogger(__name__)

MOST_LINES = 10_000  # facts that one answer carries
FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 3600.0  # before the server's own policy, which raised, is begun anew
MOST_ERRORS = 10


class ClientRun:
    """A run that a client began. Who knows its name may read and end it."""

    def __init__(self, name: str, settings: RunSettings) -> None:
        self.name = name
        self.settings = settings
        self.facts = KeptFacts()
        self.heard_s = 0.0
        self.said: dict[str, Any] = {}  # of its end, when it has ended


class Control:
    """Begins and ends runs for clients elsewhere, and keeps what they ask for.

    A server has a run of its own, from its start on. It gives way to a client's run, and goes on, with a fresh policy,
    when that has ended: because the client says so, was not heard of for `client_timeout_s`, or fetches no facts though
    it has them kept. Whatever is asked and whatever goes wrong, the server has its own run or a client's.

    `watch` is the scheduler's: who has a run under way is told what it says.
    """

    def __init__(
        self,
        adapter: Adapter,
        watch: Watch,
        client_timeout_s: float = CLIENT_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._adapter = adapter
        self._watch = watch
        self._timeout_s = client_timeout_s
        self._clock = clock
        self._own: RunSettings | None = None
        self._own_next: Policy | None = None  # for when a client's run has ended
        self._own_errors: list[str] = []  # of own runs that were given up for them
        self._anew_s: float | None = None  # when it is begun anew: one that always raises not all the time
        self._pause_s = FIRST_PAUSE_S
        self._log: EventsLog | None = None
        self._client: ClientRun | None = None
        self._ended: ClientRun | None = None  # the last one: its facts are here until the next begins

    def handle(self, op: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Do one of `info`, `begin`, `end`, `tell`, `facts`.

        What is refused comes back as `{"error": one line}`, with a `status` unless it is 400.
        """
        operations = {
            "info": self._info,
            "begin": self._begin,
            "end": self._end,
            "tell": self._tell,
            "facts": self._facts,
        }
        try:
            self.look()
            if op not in operations:
                raise EngineError(f"unknown operation {shown(op)}: expected one of {', '.join(operations)}")
            return operations[op](payload) or {}
        except _Busy as busy:
            return {"error": _one_line(busy), "status": BUSY}
        except TokencakeError as error:
            return {"error": _one_line(error)}
        except Exception as error:
            logger.exception("tokencake: %s failed", op)
            return {"error": f"a bug in tokencake: {op}: {type(error).__name__}: {_one_line(error)}", "status": 500}

    def begin_own(self, settings: RunSettings) -> None:
        """Start the server's own run. Raises what is wrong with its settings."""
        self._own = settings
        self._begin_own(None, on_empty_cache=True)

    def close(self) -> None:
        """The engine shuts down: its own run ends, so that its events are whole."""
        if self._own is not None and self._adapter.settings is self._own:
            self._end_own()

    def look(self) -> None:
        """Has a client left its run? Is the server without its own? To be asked before each step and each request."""
        try:
            self._look()
        except Exception as error:  # no reason to stop serving
            logger.exception("tokencake: a run could not be changed")
            self._pause(f"{type(error).__name__}: {_one_line(error)}")

    def _look(self) -> None:
        client = self._client
        if client is not None:
            if self._adapter.settings is not client.settings:  # somebody in this process ended it
                self._client_ended({})
            elif client.facts.overflowed:
                self._give_up(client, "too many of its facts were not fetched")
            elif self._clock() >= client.heard_s + self._timeout_s:
                self._give_up(client, f"nothing was heard of its client for {self._timeout_s:g} s")
        elif self._own is not None and (self._adapter.settings is None or self._adapter.broken):
            if self._anew_s is None:
                self._pause("the server's own policy raised")
            elif self._clock() >= self._anew_s:
                self._begin_own_anew()

    # -- the server's own run

    def _begin_own(self, policy: Policy | None, *, on_empty_cache: bool) -> None:
        own = self._own
        assert own is not None
        log = self._log = None if own.events is None else EventsLog(Path(own.events))
        try:
            journal = None if log is None else log.add
            self._adapter.begin(own, journal=journal, policy=policy, on_empty_cache=on_empty_cache)
        except BaseException as error:
            self._log = None
            if log is not None:
                log.give_up(error)
            raise

    def _own_goes_on(self) -> None:
        """Whatever is under way: requests that it does not know it serves as vLLM would."""
        if self._own is None:
            return
        policy, self._own_next = self._own_next, None
        try:
            self._begin_own(policy, on_empty_cache=False)
        except Exception as error:
            self._pause(f"the server's own run cannot begin: {_one_line(error)}")

    def _begin_own_anew(self) -> None:
        """Its policy raised some time ago, or could not be made."""
        self._anew_s = None
        if self._adapter.settings is not None:
            self._own_errors = [*self._own_errors, *self._adapter.errors][-MOST_ERRORS:]
            self._end_own()
        self._own_goes_on()

    def _pause(self, why: str) -> None:
        logger.warning("tokencake: %s; its run is begun anew in %.0f s", why, self._pause_s)
        self._anew_s = self._clock() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _end_own(self) -> None:
        try:
            self._adapter.end()
        finally:
            log, self._log = self._log, None
            if log is not None:
                log.close()

    # -- clients' runs

    def _begin(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        name, settings = checked_name(payload.get("run")), from_client(payload.get("settings"))
        if self._client is not None:
            if same_name(name, self._client.name) and settings == self._client.settings:
                return {"run": self._client.name}  # the answer was lost, and is asked for again
            raise _Busy("a run is under way: expected that its client ends it first")
        own = self._adapter.settings
        if own is not None and own is not self._own:
            raise _Busy("a run of the engine's own process is under way")
        load = self._adapter.load_policy
        policy = load(settings.policy, seed=settings.seed, registered_only=True)
        if self._own is not None:  # while it can be refused: for afterwards
            self._own_next = load(self._own.policy, seed=self._own.seed)
        if not self._adapter.at_rest:
            raise _Busy("the engine serves others: expected an idle one")
        client = ClientRun(name, settings)
        try:
            if own is not None:
                self._end_own()
            self._adapter.begin(settings, journal=client.facts.add if settings.keep_facts else None, policy=policy)
        except BaseException:
            if self._adapter.settings is None:
                self._own_goes_on()
            raise
        client.heard_s = self._clock()
        self._watch.happened(client.heard_s)
        self._client, self._ended = client, None
        return {"run": name}

    def _end(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        run = self._run(payload)
        if run is self._client:
            self._end_client()
        return run.said

    def _end_client(self) -> None:
        adapter = self._adapter
        said = {"policy_s": adapter.policy_s, "errors": list(adapter.errors)}
        try:
            adapter.end()
        finally:
            self._client_ended(said)

    def _client_ended(self, said: dict[str, Any]) -> None:
        client, self._client = self._client, None
        assert client is not None
        client.said = said
        self._ended = client
        if self._adapter.settings is None:
            self._own_goes_on()

    def _give_up(self, client: ClientRun, why: str) -> None:
        logger.warning("tokencake: the run of a client under policy %r has ended: %s", client.settings.policy, why)
        self._end_client()
        client.said["errors"].append(f"the server ended the run: {why}")

    def _run(self, payload: Mapping[str, Any]) -> ClientRun:
        name = checked_name(payload.get("run"))
        for run in (self._client, self._ended):
            if run is not None and same_name(name, run.name):
                run.heard_s = self._clock()
                return run
        raise EngineError("no run of that name is under way: only who began a run reads and ends it")

    def _facts(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        run = self._run(payload)
        try:
            first = whole(payload.get("from", 0), "from", 0, 10**15)
            most = min(MOST_LINES, whole(payload.get("limit", MOST_LINES), "limit", 1, 10**15))
        except WrongField as wrong:
            raise EngineError(f"facts: {wrong}") from None
        lines, following = run.facts.since(first, most)
        stalled = None if self._watch.said is None else {"said": self._watch.said, "after_s": self._watch.limit_s}
        return {"lines": lines, "next": following, "under_way": run is self._client, "stalled": stalled}

    # -- for all

    def _info(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        errors = list(self._adapter.errors)
        return {**self._adapter.info(), "errors": errors if self._client is not None else [*self._own_errors, *errors]}

    def _tell(self, payload: Mapping[str, Any]) -> None:
        for event in events_from_body(payload):
            self._watch.happened(self._clock())
            self._adapter.hear(event)


class _Busy(EngineError):
    """Not now."""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
