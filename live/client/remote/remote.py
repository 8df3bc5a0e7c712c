"""Plays a trace against a vLLM server that runs with our plugin, and gathers the facts that the server reports.

The run's time is the server's: it starts with the run there, and the server's answer to that starts it here, so the two
differ by less than one round trip. A call arrives when the server says so; `lateness_s` is how much later that is than
when it was due.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from ....policies.controller import Sink
from ....policies.run_settings import RunSettings
from ....policies.runs.playable import Progress
from ....traces.apps import AppId, Application, Call, CallId
from ....traces.errors import EngineError, RunError, TokencakeError
from ....traces.events import AppFinished, Asked, AskedShared, Began, CallArrived, Occupied, Planned, Request
from ....traces.format.events_file import decode
from ....traces.limits import problem
from ....traces.results.distribution import Distribution
from ...engine.control.protocol import new_name
from ..call_latencies import CallLatencies
from ..counters import Counters, FactCounters, disagreements, since
from ..in_process import LiveStats
from ..play import Player
from ..tokens import Tokens
from .answers import RunEnd, Stalled
from .chat import Messages
from .server import About, Server, Unauthorized

FACTS_EVERY_S = 0.5
GIVE_UP_S = 20.0  # so long a run that has failed or was interrupted tries to end at the server
MOST_FAILURES = 5  # that a report says more of than their number
_JOURNAL_ONLY = (Began, Asked, AskedShared, Planned)  # what a replay needs and no sink gets


class Remote:
    """A server's engine. Plays any number of runs, one after another; a context manager, like `in_process.InProcess`.

    `chat`: calls are sent as messages of text, whose tokens are about as many as the trace says, and not as token ids.
    `control_token`: opens the server's control routes; without, it is taken from TOKENCAKE_CONTROL_TOKEN. Raises
    `EngineError` unless the server is up, serves the model, and fits this client.
    """

    def __init__(self, url: str, model: str, *, chat: bool = False, control_token: str | None = None) -> None:
        self._url = url
        self._model = model
        self._chat = chat
        self._token = control_token
        self._about = asyncio.run(_look(url, model))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to close: a run opens its connections for itself."""

    @property
    def version(self) -> str:
        """vLLM's."""
        return self._about.vllm

    @property
    def limits(self) -> About:
        return self._about

    def info(self) -> dict[str, object]:
        """What the engine is: versions, model, sizes and settings, as plain data."""
        return dict(self._about.everything) | {"model": self._model, "url": self._url, "chat": self._chat}

    def play(
        self,
        applications: Iterable[Application],
        settings: RunSettings,
        sinks: Sequence[Sink] = (),
        journal: Sink | None = None,
        progress: Progress | None = None,
    ) -> LiveStats:
        """Run all applications to their ends under a policy, on an empty cache; the facts are reported as they come.

        A call that fails costs its application, and the run goes on. Raises `EngineError` for what the user can mend,
        and `RunError` if the server gave way, or does nothing though calls wait. Then, and after an interrupt, the
        calls under way are given up and the run is ended on the server, if there still is one.
        """
        return asyncio.run(self._play(applications, settings, _Facts(sinks, journal), progress))

    async def _play(
        self, applications: Iterable[Application], settings: RunSettings, facts: _Facts, progress: Progress | None
    ) -> LiveStats:
        server = Server(self._url, self._model, self._token)
        try:
            messages = Messages() if self._chat else None
            return await _Run(server, self._about, applications, facts, progress, messages).through(settings)
        finally:
            await server.close()


async def _look(url: str, model: str) -> About:
    server = Server(url, model)
    try:
        return await server.about()
    except RunError as error:  # there is no run yet that could fail: the server is down
        raise EngineError(str(error)) from None
    finally:
        await server.close()


class _Facts:
    """What the server reported so far."""

    def __init__(self, sinks: Sequence[Sink], journal: Sink | None) -> None:
        self.counters = FactCounters()
        self.call_latencies = CallLatencies()
        self._sinks = (*sinks, self.counters.add, self.call_latencies.add)
        self._journal = journal
        self._next = 0
        self.stalled: Stalled | None = None  # the engine, when it was last asked
        self.given_up: set[AppId] = set()  # applications: they did not finish, though the server is told that they end
        self.steps = 0  # known when the run has ended
        self._due_s: dict[CallId, float] = {}  # of calls that the server has not reported
        self.lateness_s = Distribution()

    def expect(self, call: CallId, due_s: float) -> None:
        """A call is about to be sent."""
        self._due_s[call] = due_s

    async def fetch(self, server: Server, run: str, *, ended: bool = False) -> bool:
        """Takes in what is new. Returns whether anything was. Raises `RunError` if the server has ended the run."""
        facts = await server.facts(run, self._next)
        for number, line in enumerate(facts.lines, self._next):
            self._take(decode(line.encode() + b"\n", f"{server.url}: fact {number}"))
        self._next = facts.following
        self.stalled = facts.stalled
        if not facts.under_way and not ended:
            raise RunError(f"{server.url}: the server has ended the run: it had not heard of this client for too long")
        if facts.under_way and ended:  # more would come, maybe for ever
            raise RunError(f"{server.url}: facts: the run has been ended, but the server says that it is under way")
        return bool(facts.lines)

    def _take(self, record: Any) -> None:
        if self._journal is not None:
            self._journal(record)
        if isinstance(record, _JOURNAL_ONLY) or (isinstance(record, AppFinished) and record.app in self.given_up):
            return
        for sink in self._sinks:
            sink(record)
        if isinstance(record, CallArrived):
            due_s = self._due_s.pop(record.request.id, None)
            if due_s is not None:
                self.lateness_s.add(max(0.0, record.at_s - due_s))
                self.lateness_s.fold()
        elif isinstance(record, Occupied):
            self.steps = record.steps


class _Run:
    """One run on one server. It is the engine that a `Player` talks to: what that says is put down, then sent.

    Each call under way is a task of the event loop, and the fetching of facts is one.
    """

    def __init__(
        self,
        server: Server,
        about: About,
        applications: Iterable[Application],
        facts: _Facts,
        progress: Progress | None,
        messages: Messages | None,
    ) -> None:
        self._server = server
        self._facts = facts
        self._progress = progress
        self._messages = messages
        self._player = Player(_checked(applications, about), messages or Tokens(about.vocabulary), self)
        self._events: list[dict[str, object]] = []  # not sent
        self._calls: list[Coroutine[Any, Any, None]] = []  # not sent
        self._ended: deque[tuple[CallId, list[int] | None]] = deque()  # and their answers; None: they failed
        self._failures: list[str] = []  # of calls: the first ones
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._news = asyncio.Event()  # a call ended, or something failed
        self._start_s = 0.0
        self._active_s = 0.0  # when something was last due, sent, or answered
        self._name = new_name()

    async def through(self, settings: RunSettings) -> LiveStats:
        before = await self._server.counters()
        try:
            await self._server.begin(self._name, replace(settings, keep_facts=True))
            self._start_s = time.monotonic()
            fetching = self._spawn(self._keep_fetching())
            await self._drive()
            wall_s = self._now_s()
            fetching.cancel()
            said = await self._server.end(self._name)
            while await self._facts.fetch(self._server, self._name, ended=True):
                pass
        except BaseException:
            await self._give_up()
            raise
        after = await self._server.counters()
        return self._stats(wall_s, said, None if before is None or after is None else since(before, after))

    def _stats(self, wall_s: float, said: RunEnd, vllm: Counters | None) -> LiveStats:
        facts, counted = self._facts, self._facts.counters.counted
        counters = {"facts": counted.record()} | ({} if vllm is None else {"vllm": vllm.record()})
        return LiveStats(
            said.policy_s,
            wall_s,
            self._player.applications,
            self._player.calls,
            facts.steps,
            facts.lateness_s.summary(),
            counters,
            [] if vllm is None else disagreements(vllm, counted),
            said.errors,
            facts.call_latencies.summary(),
            self._player.failed_calls,
            self._failures,
            self._server.asked_again,
        )

    # -- what the player says

    def app_started(self, app: AppId, due_s: float) -> None:
        self._events.append({"event": "app_started", "app": app, "at_s": due_s})

    def app_finished(self, app: AppId, due_s: float) -> None:
        self._events.append({"event": "app_finished", "app": app, "at_s": due_s})

    def tool_returned(self, call: Call, due_s: float) -> None:
        agent, name = (text.removeprefix(f"{call.app}/") for text in (call.agent, call.id))
        event = {"event": "tool_returned", "app": call.app, "agent": agent, "call": name, "at_s": due_s}
        self._events.append(event)

    def submit(self, call: Call, request: Request, token_ids: list[int], due_s: float, last: bool) -> None:
        self._facts.expect(call.id, due_s)
        self._calls.append(self._serve(call, request, token_ids, last))

    # -- the run

    async def _drive(self) -> None:
        while True:
            self._player.advance(self._now_s())
            await self._send()
            self._active_s = self._now_s()
            if self._player.done:
                return
            await self._wait()
            while self._ended:
                call, answer = self._ended.popleft()
                if answer is None:
                    self._facts.given_up.add(self._player.failed(call, self._now_s()))
                else:
                    self._player.finished(call, self._now_s(), answer)
            if self._progress is not None:
                self._progress(self._player.applications, self._now_s())

    async def _wait(self) -> None:
        """Until a call ended or something is due. Raises what failed meanwhile."""
        due_s = self._player.next_due_s
        with suppress(TimeoutError):
            async with asyncio.timeout(None if due_s is None else max(0.0, due_s - self._now_s())):
                await self._news.wait()
        self._news.clear()
        if self._failure is not None:
            raise self._failure

    async def _send(self) -> None:
        """Events go ahead of the calls that became due with them: one round trip, however many there are."""
        if self._events:
            events, self._events = self._events, []
            await self._server.tell(events, wait=self._player.done)  # the run's end must not overtake the last ones
        calls, self._calls = self._calls, []
        for call in calls:
            self._spawn(call)

    async def _serve(self, call: Call, request: Request, token_ids: list[int], last: bool) -> None:
        answer: list[int] | None = []
        try:
            if self._messages is None:
                answer = await self._server.complete(call, request, token_ids, last)
            else:
                text = await self._server.chat(call, request, self._messages.of(call), last)
                self._messages.said(call.id, text)
        except Unauthorized:
            raise
        except TokencakeError as error:  # a server that is gone is found by who fetches the facts
            answer = None
            if len(self._failures) < MOST_FAILURES:
                self._failures.append(str(error))
        self._ended.append((call.id, answer))
        self._news.set()

    async def _keep_fetching(self) -> None:
        while True:
            await asyncio.sleep(FACTS_EVERY_S)
            await self._facts.fetch(self._server, self._name)
            self._look_out()

    def _look_out(self) -> None:
        """Raises `RunError` when calls wait, the engine does nothing, and nothing is on its way to it from here."""
        stalled, now_s = self._facts.stalled, self._now_s()
        if self._player.next_due_s is not None:
            self._active_s = now_s
        elif stalled is not None and now_s >= self._active_s + stalled.after_s:
            raise RunError(f"{self._server.url}: {stalled.said}")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._settled)
        return task

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
            self._news.set()

    async def _give_up(self) -> None:
        """Calls under way are cut off, which aborts them on the server; the run ends there, if there is still one."""
        for call in self._calls:
            call.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._facts.given_up.update(self._player.under_way)
        with suppress(TokencakeError, TimeoutError):  # what went wrong first is what counts
            async with asyncio.timeout(GIVE_UP_S):
                await self._server.end(self._name)
                while await self._facts.fetch(self._server, self._name, ended=True):
                    pass

    def _now_s(self) -> float:
        return time.monotonic() - self._start_s


def _checked(applications: Iterable[Application], about: About) -> Iterable[Application]:
    for application in applications:
        if (text := problem(application, about)) is not None:
            raise EngineError(text)
        yield application
