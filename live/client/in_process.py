"""vLLM in this process: started with our scheduler and connector, and driven step by step while a trace is played.

Nobody steps an engine that lives in the caller's process but the caller: `play` hands over what is due, steps while
there is something to do, and sleeps until the next thing is due. Importing this module imports no vLLM; starting an
engine does.
"""

from __future__ import annotations

import faulthandler
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

from ...policies.controller import Sink
from ...policies.run_settings import LONGEST_COPY_S, RunSettings
from ...policies.runs.playable import Progress
from ...traces.apps import AppId, Application, Call, CallId
from ...traces.errors import EngineError, RunError, TokencakeError
from ...traces.events import Request
from ...traces.limits import problem
from ..engine.control.metadata import KEY, to_metadata
from ..engine.control.stall import Watch
from ..engine.vllm_surface import VllmRequestOutput
from .call_latencies import CallLatencies
from .counters import EngineCounters, FactCounters, disagreements
from .engine_options import EngineOptions
from .play import Player
from .start.launch import Started, start
from .tokens import Tokens

LONGEST_SLEEP_S = 0.1  # an interrupt is noticed at the latest after this
EMPTY_STEP_S = 0.0005  # after a step that computed nothing: somebody else needs the time, to copy


class EngineLimits(NamedTuple):
    """What bounds the calls that this engine can serve (`traces.limits.Limits`)."""

    gpu_blocks: int
    block_tokens: int
    max_context_tokens: int


@dataclass(frozen=True, slots=True)
class LiveStats:
    """What a run came to, beside its facts. Times are wall time."""

    policy_s: float  # spent in the policy
    wall_s: float
    applications: int
    calls: int
    steps: int  # that computed something
    lateness_s: Mapping[str, float | None]  # of calls: how long after they were due the engine got them
    counters: Mapping[str, Mapping[str, int]]  # `vllm`: by its own statistics; `facts`: by the facts
    disagreements: Sequence[str]  # between the two; of an engine that is right there are none
    errors: Sequence[str]  # what the policy raised: the engine went on without it
    call_latency_s: Mapping[str, float | None] = field(default_factory=dict)  # from arrival to end
    failed_calls: int = 0  # that came to nothing: their applications were given up
    failures: Sequence[str] = ()  # what went wrong with the first of them
    asked_again: int = 0  # questions to a server that it had not answered
    outputs: Mapping[CallId, list[int]] = field(default_factory=dict)  # if they were asked for

    @property
    def failed(self) -> str | None:
        """Why the figures are not those of the policy that was asked for; None if they are."""
        if self.errors:
            return f"{self.errors[0]}; the rest of the run was played without it"
        if self.failed_calls:
            calls = f"{self.failed_calls} call{'s' if self.failed_calls > 1 else ''}"
            return f"{calls} failed, and what came behind was not played: {self.failures[0]}"
        return None

    def record(self) -> dict[str, object]:
        """What a report says of a live run beside its metrics."""
        names = ("lateness_s", "call_latency_s", "counters", "disagreements", "failed", "errors")
        return {name: getattr(self, name) for name in (*names, "failed_calls", "failures", "asked_again")}


class InProcess:
    """An engine in this process. Plays any number of runs, one after another; a context manager that ends it.

    With `stock` it is plain vLLM, without our scheduler and connector: it reports no facts, and serves any policy's
    calls in its own way. Raises `EngineError` if vLLM is not installed, or cannot serve what `options` ask for.
    """

    def __init__(self, options: EngineOptions, *, stock: bool = False) -> None:
        self.options = options
        _give_signals_a_stack()
        self._engine: Started = start(options, stock=stock)
        self._counters = EngineCounters()
        self._engine.llm.logger_manager = self._counters

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine and give its memory back. It cannot be used any more."""
        self._engine.stop()

    @property
    def version(self) -> str:
        """vLLM's."""
        return self._engine.version

    @property
    def limits(self) -> EngineLimits:
        engine = self._engine
        return EngineLimits(engine.gpu_blocks, engine.block_tokens, engine.max_context_tokens)

    @property
    def adapter(self) -> Any:
        """The engine's `live.engine.adapter.Adapter`; None of a stock engine."""
        return self._engine.adapter

    @property
    def scheduler(self) -> Any:
        """vLLM's scheduler."""
        return self._engine.core.scheduler

    def info(self) -> dict[str, object]:
        """What this engine is: versions, model, sizes and settings, as plain data."""
        return self._engine.info()

    def play(
        self,
        applications: Iterable[Application],
        settings: RunSettings,
        sinks: Sequence[Sink] = (),
        journal: Sink | None = None,
        progress: Progress | None = None,
        *,
        outputs: bool = False,
    ) -> LiveStats:
        """Run all applications to their ends under a policy, on an empty cache, and report the facts as they happen.

        Raises `EngineError` for a call that the engine can never serve, `PolicyError` for a policy that is not there,
        and `RunError` if vLLM fails, or if calls wait and nothing happens for the options' `stall_s`. After any of
        them, and after an interrupt, the sinks have heard that the calls under way were given up, and the engine is at
        rest and can play again, unless vLLM itself has died.
        """
        run = _Run(self._engine, self._counters, settings, outputs, self.options.stall_s)
        with _interrupt_noted() as interrupted:
            return run.play(_checked(applications, self.limits), sinks, journal, progress, interrupted)


class _Run:
    """One run: the engine of a `Player`, and the loop that drives both."""

    def __init__(
        self, engine: Started, counters: EngineCounters, settings: RunSettings, outputs: bool, stall_s: float
    ) -> None:
        self._engine = engine
        self._adapter = engine.adapter
        self._vllm_counters = counters
        self._fact_counters = FactCounters()
        self._call_latencies = CallLatencies()
        self._settings = settings
        self._outputs: dict[CallId, list[int]] | None = {} if outputs else None
        self._start_s = 0.0  # where there is no adapter, which has a clock of its own
        self._start_wall_s = 0.0
        self._steps = 0
        self._watch = Watch(stall_s)
        self._requests: dict[CallId, str] = {}  # of calls under way: vLLM's name for the request
        self._wanted: dict[CallId, int] = {}  # and how long the answer has to be

    def play(
        self,
        applications: Iterable[Application],
        sinks: Sequence[Sink],
        journal: Sink | None,
        progress: Progress | None,
        interrupted: threading.Event,
    ) -> LiveStats:
        self._vllm_counters.reset()
        if self._adapter is not None:
            sinks = [*sinks, self._fact_counters.add, self._call_latencies.add]
            self._adapter.begin(self._settings, sinks, journal)
        else:
            self._engine.forget()
        self._start_s = time.monotonic()
        self._start_wall_s = time.time() - self.now_s()
        try:
            player = Player(applications, Tokens(self._engine.vocabulary), self)
            self._drive(player, progress, interrupted)
            wall_s, policy_s = self.now_s(), 0.0 if self._adapter is None else self._adapter.policy_s
        except BaseException:
            with suppress(Exception):  # an engine that cannot come to rest now will refuse the next run
                self._come_to_rest(cut_off=True)
            raise
        self._come_to_rest()
        return LiveStats(
            policy_s,
            wall_s,
            player.applications,
            player.calls,
            self._steps,
            player.lateness_s.summary(),
            *self._compared(),
            call_latency_s=self._call_latencies.summary(),
            errors=[] if self._adapter is None else list(self._adapter.errors),
            outputs=self._outputs or {},
        )

    def now_s(self) -> float:
        """Seconds since the run began."""
        now_s: float = time.monotonic() - self._start_s if self._adapter is None else self._adapter.now_s()
        return now_s

    # -- what a player asks of its engine

    def app_started(self, app: AppId, due_s: float) -> None:
        if self._adapter is not None:
            self._adapter.tell({"event": "app_started", "app": app, "at_s": due_s})

    def app_finished(self, app: AppId, due_s: float) -> None:
        if self._adapter is not None:
            self._adapter.tell({"event": "app_finished", "app": app, "at_s": due_s})

    def tool_returned(self, call: Call, due_s: float) -> None:
        if self._adapter is not None:
            agent = call.agent.removeprefix(f"{call.app}/")
            self._adapter.tell({"event": "tool_returned", "app": call.app, "agent": agent, "at_s": due_s})

    def submit(self, call: Call, request: Request, token_ids: list[int], due_s: float, last: bool) -> None:
        said = {KEY: to_metadata(request, last)}
        arrival_s = self._start_wall_s + due_s
        self._requests[call.id] = self._engine.add(call.id, token_ids, call.output_tokens, said, arrival_s)
        self._wanted[call.id] = call.output_tokens

    # -- the loop

    def _drive(self, player: Player, progress: Progress | None, interrupted: threading.Event) -> None:
        ended: list[tuple[CallId, list[int]]] = []
        shown_s = 0.0
        while True:
            now_s = self.now_s()
            for call, answer in ended:
                player.finished(call, now_s, answer)
            player.advance(now_s)
            if player.done:
                return
            if interrupted.is_set():
                raise KeyboardInterrupt
            if progress is not None and now_s >= shown_s + LONGEST_SLEEP_S:
                shown_s = now_s
                progress(player.applications, now_s)
            if self._must_step():
                ended = self._step()
            else:
                ended = []
                self._sleep(player.next_due_s)
            self._look_out(player)

    def _must_step(self) -> bool:
        return self._engine.busy or (self._adapter is not None and self._adapter.has_work())

    def _step(self) -> list[tuple[CallId, list[int]]]:
        """One step of vLLM: the calls that it ended, and their answers."""
        ended = []
        computing = self._engine.computing
        try:
            outputs = self._engine.llm.step()
        except TokencakeError:
            raise
        except Exception as error:
            raise RunError(f"vLLM failed in a step: {type(error).__name__}: {error}") from error
        for output in outputs:
            if output.finished:
                ended.append((output.request_id, self._answer(output)))
        if self._engine.executed or computing or ended:
            self._watch.happened(self.now_s())
        if self._engine.executed:
            self._steps += 1
        elif not (computing or ended):
            time.sleep(EMPTY_STEP_S)
        return ended

    def _answer(self, output: VllmRequestOutput) -> list[int]:
        call, (completion,) = output.request_id, output.outputs
        answer = list(completion.token_ids)
        del self._requests[call]
        wanted = self._wanted.pop(call)
        if len(answer) != wanted:
            reason = completion.finish_reason
            raise RunError(f"call {call!r}: vLLM ended it after {len(answer)} of {wanted} tokens: {reason}")
        if self._outputs is not None:
            self._outputs[call] = answer
        return answer

    def _look_out(self, player: Player) -> None:
        """Raise `RunError` when calls wait and nothing happens."""
        now_s = self.now_s()
        if player.next_due_s is not None:
            self._watch.happened(now_s)
            return
        if (said := self._watch.look(now_s, self._engine.core.scheduler, self._adapter, self._requests)) is not None:
            raise RunError(said)

    def _sleep(self, due_s: float | None) -> None:
        """Until the next thing is due, or the policy wants to be asked; an interrupt is noticed in between."""
        wake_s = None if self._adapter is None else self._adapter.wake_s()
        until_s = min((at_s for at_s in (due_s, wake_s) if at_s is not None), default=None)
        if until_s is None:
            raise RunError("nothing is due and the engine has nothing to do, but calls have not ended")
        time.sleep(min(max(0.0, until_s - self.now_s()), LONGEST_SLEEP_S))

    # -- the end

    def _come_to_rest(self, *, cut_off: bool = False) -> None:
        """End the run, abort what is left, and step until no copy is under way: the next run finds an idle engine."""
        try:
            if self._adapter is not None and self._adapter.settings is not None:
                self._adapter.end(cut_off=cut_off)
        finally:
            if self._requests:
                self._engine.llm.abort_request(list(self._requests.values()), internal=True)
        limit_s = time.monotonic() + LONGEST_COPY_S
        while self._must_step():
            self._engine.llm.step()
            if time.monotonic() > limit_s:
                raise RunError(f"the engine has not come to rest {LONGEST_COPY_S:.0f} s after the run's end")

    def _compared(self) -> tuple[dict[str, dict[str, int]], list[str]]:
        """vLLM's counters and ours, and where they differ."""
        vllm, facts = self._vllm_counters.counted, self._fact_counters.counted
        if self._adapter is None:
            return {"vllm": vllm.record()}, []
        return {"vllm": vllm.record(), "facts": facts.record()}, disagreements(vllm, facts)


def _checked(applications: Iterable[Application], limits: EngineLimits) -> Iterator[Application]:
    for application in applications:
        if (text := problem(application, limits)) is not None:
            raise EngineError(text)
        yield application


def _give_signals_a_stack() -> None:
    """Have signals handled on a stack of their own.

    Matrix kernels that are generated for a CPU may keep a pointer to data in the stack pointer: what the system saves
    of a signal would be written over the heap. Python handles signals on the alternate stack of the main thread where
    there is one, and its fault handler brings one.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable(file=2)  # by number: stderr may be a notebook's


@contextmanager
def _interrupt_noted() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of breaking into a step of vLLM; a second one breaks in all the same."""
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: FrameType | None) -> None:
        if noted.is_set():
            raise KeyboardInterrupt
        noted.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
